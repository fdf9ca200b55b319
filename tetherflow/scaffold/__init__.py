"""Writes a package of one's own: what `tetherflow new-policy` does."""

from tetherflow.scaffold.names import PolicyNames
from tetherflow.scaffold.write import write_package

__all__ = ["PolicyNames", "write_package"]
