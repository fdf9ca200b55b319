"""The names of a new policy's package."""

from __future__ import annotations

import pytest

from tetherflow.errors import PluginError
from tetherflow.scaffold import PolicyNames


@pytest.mark.parametrize(
    ("wanted", "plugin"),
    [
        ("small-keys", "small-keys"),
        ("Small Keys", "small-keys"),
        ("SmallKeys", "small-keys"),
        ("small_keys", "small-keys"),
        ("  Smáll.Kéys!! ", "small-keys"),
        ("tetherflow-small-keys", "small-keys"),
        ("h2o", "h2o"),
        ("../../etc/passwd", "etc-passwd"),
        ("a" * 40, "a" * 40),
    ],
)
def test_name_is_made_fit(wanted: str, plugin: str) -> None:
    assert PolicyNames.of(wanted).plugin == plugin


def test_all_names_are_made_of_one() -> None:
    names = PolicyNames.of("Small Keys 2")
    assert (names.plugin, names.distribution, names.module, names.cls, names.test) == (
        "small-keys-2", "tetherflow-small-keys-2", "tetherflow_small_keys_2", "SmallKeys2", "small_keys_2",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("", "no plugin can be named ''; a name begins with a letter from a to z and has at most 40"),
        ("!!", "no plugin can be named '!!'"),
        ("2fast", "no plugin can be named '2fast'"),
        ("策略", "no plugin can be named '策略'"),
        ("a" * 41, "has at most 40"),
        ("tame", "a plugin named 'tame' is installed, by tetherflow .*; choose another name"),
        ("policies", "a package named tetherflow_policies is installed; choose another name"),
        ("scorer", "'scorer' would make a class Scorer, which is taken"),
        ("path", "'path' would make a class Path, which is taken"),
        ("none", "'none' would make a class None, which is taken"),
        ("exception", "'exception' would make a class Exception, which is taken"),
        ("null", "YAML does not take 'null' for a word; choose another name"),
        ("off", "YAML does not take 'off' for a word"),
    ],
)
def test_name_that_would_not_do_is_refused(wanted: str, text: str) -> None:
    with pytest.raises(PluginError, match=text):
        PolicyNames.of(wanted)
