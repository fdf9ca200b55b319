"""A recipe back as YAML, every default spelt out."""

from __future__ import annotations

import yaml

from tetherflow.recipe.model import Recipe
from tetherflow.recipe.source import read_exponents


class _Dumper(yaml.SafeDumper):
    """Quotes what the reader would take for a number."""


read_exponents(_Dumper)


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML that stands alone: it extends nothing, and reading it gives the same recipe."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
