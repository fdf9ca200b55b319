"""The recipes that ship with Tetherflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tetherflow.recipe import Recipe, bundled_recipes, latent_frames_of, layout_of, load_recipe

BUDGETS = {
    "ema-sink": 9,
    "fademem": 15,
    "fifo": 21,
    "fifo-relative": 21,
    "forcing-kv": 6,
    "grab-no-diversity": 21,
    "quickstart": 21,
    "rolling-sink": 21,
    "sink-window": 21,
    "tethercache": 21,
    "tethercache-no-tame": 21,
}


def regions(recipe: Recipe) -> tuple[int, int, int]:
    layout = layout_of(recipe)
    return layout.sink, layout.memory, layout.recent


def test_all_are_there() -> None:
    assert sorted(bundled_recipes()) == list(BUDGETS)


@pytest.mark.parametrize("name", BUDGETS)
def test_each_is_complete_and_says_what_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.backbone.use == "mini"
    assert recipe.cache.budget == BUDGETS[name]
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


def test_ablations_leave_out_one_thing_each() -> None:
    whole = load_recipe("tethercache")
    no_tame, no_diversity = load_recipe("tethercache-no-tame"), load_recipe("grab-no-diversity")
    assert no_tame.stages == whole.stages.model_copy(update={"edit": []})
    assert no_diversity.stages == whole.stages.model_copy(update={"score": whole.stages.score[:1]})
