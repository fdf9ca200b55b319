"""The recipes that ship with Tetherflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tetherflow import Layout
from tetherflow.recipe import Recipe, bundled_recipes, latent_frames_of, layout_of, load_recipe

NAMES = [
    "ema-sink",
    "fademem",
    "fademem-tame",
    "rolling-sink",
    "deep-forcing",
    "deep-sink",
    "fifo",
    "forcing-kv",
    "fifo-relative",
    "grab-ema-sink",
    "grab-no-diversity",
    "infinity-rope",
    "infinity-rope-switch",
    "longlive",
    "longlive-infinity",
    "longlive-switch",
    "h2o",
    "h2o-tame",
    "key-norm",
    "memrope",
    "quickstart",
    "rolling-forcing",
    "sink-window",
    "tethercache",
    "tethercache-adaptive",
    "tethercache-no-tame",
    "tethercache-ramp",
    "two-prompts",
]

BUDGETS = {
    "ema-sink": 9,
    "fademem": 15,
    "fademem-tame": 15,
    "forcing-kv": 6,
    "infinity-rope": 6,
    "infinity-rope-switch": 6,
    "longlive": 12,
    "longlive-infinity": 12,
    "longlive-switch": 12,
    "memrope": 12,
}
"""Latent frames held by those that were published with another budget."""


PUBLISHED = [
    "causal-forcing",
    "causvid",
    "krea-realtime",
    "longlive-1.3b",
    "reward-forcing",
    "self-forcing",
    "self-forcing-tethercache",
]


def regions(recipe: Recipe) -> tuple[int, int, int]:
    layout = layout_of(recipe)
    return layout.sink, layout.memory, layout.recent


def test_all_are_there() -> None:
    assert sorted(bundled_recipes()) == sorted([*NAMES, *PUBLISHED])


@pytest.mark.parametrize("name", NAMES)
def test_each_is_complete_and_says_what_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.backbone.use == "mini"
    assert recipe.cache.budget == BUDGETS.get(name, 21)
    assert "arXiv" in bundled_recipes()[name].read_text().partition("description")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_those_of_published_models_say_what_to_fetch(name: str) -> None:
    """Whether they suit their checkpoints is tested with those."""
    recipe = load_recipe(name)
    assert f"run `tetherflow fetch {recipe.backbone.use}` first" in recipe.description
    assert "arXiv" in bundled_recipes()[name].read_text().partition("description")[0]


def test_tethercache_has_the_papers_defaults() -> None:
    recipe = load_recipe("tethercache")
    assert regions(recipe) == (3, 14, 4)
    assert recipe.cache.positions == "block-relative"
    score = {entry.use: entry.options for entry in recipe.stages.score}
    assert score == {"relevance": {"temperature": 1.0}, "temporal-diversity": {"alpha": 0.35}}
    assert [(entry.use, entry.options) for entry in recipe.stages.edit] == [("tame", {"tau": 0.6})]
    assert latent_frames_of(recipe) == 120


def test_fifo_has_one_region_and_absolute_positions() -> None:
    assert regions(load_recipe("fifo")) == (0, 0, 21)
    assert load_recipe("fifo").cache.positions == "absolute"
    assert regions(load_recipe("fifo-relative")) == (0, 0, 21)
    assert load_recipe("fifo-relative").cache.positions == "block-relative"


def test_sink_window_keeps_three() -> None:
    recipe = load_recipe("sink-window")
    assert regions(recipe) == (3, 0, 18)
    assert recipe.cache.positions == "block-relative"


def test_memrope_has_the_published_settings() -> None:
    recipe = load_recipe("memrope")
    assert layout_of(recipe) == Layout(sink=3, bank=2, memory=0, recent=7)
    assert recipe.stages.merge is not None
    assert recipe.stages.merge.options == {
        "long_rate": 0.01,
        "short_rate": 0.1,
        "pool_tokens": True,
        "adaptive": False,
    }


def test_h2o_splits_its_budget_in_halves() -> None:
    assert regions(load_recipe("h2o")) == (0, 10, 11)


def test_ablations_leave_out_one_thing_each() -> None:
    whole = load_recipe("tethercache")
    no_tame, no_diversity = load_recipe("tethercache-no-tame"), load_recipe("grab-no-diversity")
    assert no_tame.stages == whole.stages.model_copy(update={"edit": []})
    assert no_diversity.stages == whole.stages.model_copy(update={"score": whole.stages.score[:1]})
