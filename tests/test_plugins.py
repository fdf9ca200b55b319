"""Discovery through entry points: lazily, and with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys import register, toy
from tetherflow.errors import PluginError
from tetherflow.plugins import list_plugins, load_backbone, load_stage
from tetherflow.recipe import load_recipe

__all__ = ["toy"]

SHIPPED = {
    "backbone": [
        "causal-forcing", "causvid", "krea-realtime", "longlive", "mini", "reward-forcing", "self-forcing",
        "self-forcing-sid", "synthetic",
    ],
    "evict": [
        "deep-forcing", "infinity-rope", "longlive", "recall-window", "rolling-forcing", "rolling-sink",
        "sink-window", "sliding-window",
    ],
    "score": ["heavy-hitter", "key-norm", "participation", "relevance", "temporal-diversity"],
    "select": ["capped-top-m", "fademem", "forcing-kv", "top-m"],
    "edit": ["tame"],
    "merge": ["ema-sink", "memrope"],
    "schedule": ["drift-distance", "ramp"],
}  # fmt: skip


def test_shipped_plugins_register_through_the_public_entry_points() -> None:
    found = [plugin for plugin in list_plugins() if plugin.distribution == "tetherflow"]
    named = {(plugin.stage, plugin.name) for plugin in found}
    assert named == {(stage, name) for stage, names in SHIPPED.items() for name in names}
    for plugin in found:
        assert plugin.error is None
        assert plugin.summary
        assert plugin.version == "0.1.0"


def test_unknown_name_gives_the_nearest_ones_and_how_to_install() -> None:
    with pytest.raises(PluginError) as caught:
        load_stage("relevence", "score")
    message = str(caught.value)
    assert "did you mean 'relevance'?" in message
    assert "pip install" in message
    assert "tetherflow plugins" in message


def test_unknown_backbone() -> None:
    with pytest.raises(
        PluginError, match=r"no backbone plugin named 'minni' is installed; did you mean 'mini'"
    ):
        load_backbone("minni")


def test_plugin_of_another_stage() -> None:
    with pytest.raises(PluginError, match="'tame' is of stage 'edit' and cannot be used as 'select'"):
        load_stage("tame", "select")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "ModuleNotFoundError: No module named 'tetherflow_toy_missing'"),
        ("exits", "SystemExit: 3"),
        ("no-stage", "is 3, which is not a subclass of tetherflow.Stage"),
        ("bare-stage", "names no stage; derive it from Evictor, Scorer, Selector, Editor or Merger, or"),
    ],
)
def test_broken_package_hurts_only_the_recipe_that_names_it(toy: Path, name: str, reason: str) -> None:
    load_recipe("tethercache", ["backbone.use=toy"])
    with pytest.raises(PluginError) as caught:
        load_stage(name, "score")
    assert reason in str(caught.value)
    assert "tetherflow-toy 0.1" in str(caught.value)
    listed = {plugin.name: plugin for plugin in list_plugins()}
    assert listed[name].stage is None
    assert reason in (listed[name].error or "")
    assert listed["raises"].error is None


def test_name_claimed_twice_is_an_error_only_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner in ("first", "second"):
        register(
            tmp_path / owner,
            f"{owner}-policies",
            "[tetherflow.policies]\ntwice = tetherflow_policies.grab:Relevance\n",
        )
        monkeypatch.syspath_prepend(str(tmp_path / owner))
    load_stage("relevance", "score")
    with pytest.raises(PluginError) as caught:
        load_stage("twice", "score")
    assert "first-policies 1.0" in str(caught.value)
    assert "second-policies 1.0" in str(caught.value)
    rows = [plugin for plugin in list_plugins() if plugin.name == "twice"]
    assert len(rows) == 2
    assert all("registered twice" in (row.error or "") for row in rows)


def test_discovery_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "landmine.py").write_text("raise RuntimeError('imported')\n")
    register(tmp_path, "landmine", "[tetherflow.policies]\nlandmine = landmine:Scorer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_stage("tame", "edit").stage == "edit"
    with pytest.raises(PluginError, match="RuntimeError: imported"):
        load_stage("landmine", "score")
