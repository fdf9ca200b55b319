"""The names in a new policy's package, all made of one."""

from __future__ import annotations

import builtins
import re
import unicodedata
from importlib.util import find_spec
from typing import Final

import attrs
import yaml

import tetherflow
from tetherflow.errors import PluginError
from tetherflow.plugins import POLICIES, installed, provider

LONGEST = 40
"""Letters that a name may have."""

IMPORTED: Final = ("CacheEngine", "Callable", "Field", "Path", "Tensor")
"""What the templates import besides Tetherflow's own names."""


@attrs.frozen
class PolicyNames:
    """The names of one policy.

    Attributes:
        plugin: what a recipe uses, such as `small-keys`: lower-case words of letters and digits.
    """

    plugin: str

    @classmethod
    def of(cls, wanted: str) -> PolicyNames:
        """Make names of what somebody typed: `Small Keys`, `SmallKeys` and `small_keys` become `small-keys`.

        Raises:
            PluginError: Nothing can be made of it, or one of the names is taken.
        """
        letters = unicodedata.normalize("NFKD", wanted).encode("ascii", "ignore").decode()
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", letters).lower()
        plugin = re.sub(r"[^a-z0-9]+", "-", words).strip("-").removeprefix("tetherflow-")
        if not re.match("[a-z]", plugin) or len(plugin) > LONGEST:
            raise PluginError(
                f"no plugin can be named '{wanted}'; a name begins with a letter from a to z and has at most "
                f"{LONGEST}, such as 'small-keys'"
            )
        names = cls(plugin)
        names._check_free()
        return names

    @property
    def distribution(self) -> str:
        """What pip installs, such as `tetherflow-small-keys`."""
        return f"tetherflow-{self.plugin}"

    @property
    def module(self) -> str:
        """The import package, such as `tetherflow_key_norm`."""
        return self.distribution.replace("-", "_")

    @property
    def cls(self) -> str:
        """The class, such as `KeyNorm`."""
        return "".join(word.capitalize() for word in self.plugin.split("-"))

    @property
    def test(self) -> str:
        """The policy in the name of a test, such as `key_norm`."""
        return self.plugin.replace("-", "_")

    def _check_free(self) -> None:
        if self.plugin in installed(POLICIES):
            distribution, version = provider(POLICIES, self.plugin)
            owner = f"{distribution} {version}"
            raise PluginError(f"a plugin named '{self.plugin}' is installed, by {owner}; choose another name")
        if find_spec(self.module) is not None:
            raise PluginError(f"a package named {self.module} is installed; choose another name")
        if self.cls in (*tetherflow.__all__, *IMPORTED) or hasattr(builtins, self.cls):
            raise PluginError(
                f"'{self.plugin}' would make a class {self.cls}, which is taken; choose another name"
            )
        if yaml.safe_load(self.plugin) != self.plugin:
            raise PluginError(f"YAML does not take '{self.plugin}' for a word; choose another name")
