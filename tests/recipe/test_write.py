"""A resolved recipe is a recipe: it stands alone, and reading it gives the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.toys import register
from tetherflow.recipe import bundled_recipes, dump_recipe, load_recipe, pipeline_of
from tetherflow.recipe.model import Recipe

pytestmark = pytest.mark.usefixtures("toy")


def test_resolved_recipe_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.txt").write_text("one: two\n- three\n")
    (tmp_path / "first.png").write_bytes(b"any")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: tethercache\nbackbone: toy\n"
        "rollout: {prompts_file: p.txt, first_frames: first.png}\noutput: {folder: out}\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path, ["runtime.threads=2"])
    resolved = tmp_path / "elsewhere" / "recipe.yaml"
    resolved.parent.mkdir()
    resolved.write_text(dump_recipe(recipe))
    monkeypatch.chdir("/")
    assert load_recipe(resolved) == recipe
    data = yaml.safe_load(resolved.read_text())
    assert "extends" not in data
    assert data["rollout"]["prompts"] == ["one: two", "- three"]
    assert data["rollout"]["first_frames"] == str(tmp_path / "first.png")
    assert data["output"] == {"folder": str(tmp_path / "out"), "name": "mine"}
    assert data["stages"]["edit"] == [{"use": "tame", "tau": 0.6}]


def test_paths_among_options(tmp_path: Path) -> None:
    """A path is relative to the file it is written in; a default one stays the installation's own."""
    path = tmp_path / "mine.yaml"
    path.write_text("extends: fifo\nbackbone: {use: toy, folder: here}\n")
    assert load_recipe(path).backbone.options["folder"] == str(tmp_path / "here")
    overridden = load_recipe(path, ["backbone.folder=there"])
    assert overridden.backbone.options["folder"] == str(Path("there").absolute())
    path.write_text("extends: fifo\nbackbone: {use: toy}\n")
    assert "folder" not in load_recipe(path).backbone.options


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_every_shipped_recipe_reads_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["backbone.use=toy"])
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


@settings(max_examples=50)
@example(prompts=["0E0", "-1e+4", "yes", "2020-01-01"])
@given(prompts=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1))
def test_any_prompt_survives(prompts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = load_recipe("fifo", ["backbone.use=toy"])
    prompts = [prompt for prompt in prompts if prompt.isprintable()] or ["words"]
    rollout = recipe.rollout.model_copy(update={"prompts": prompts})
    changed: Recipe = recipe.model_copy(update={"rollout": rollout})
    path = tmp_path_factory.mktemp("recipe") / "resolved.yaml"
    path.write_text(dump_recipe(changed), encoding="utf-8")
    assert load_recipe(path) == changed


def test_an_option_by_another_name_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has a use of its own for some words."""
    (tmp_path / "tetherflow_named.py").write_text(
        "from pydantic import Field\n"
        "from tetherflow import Scorer, StageOptions, hookimpl\n"
        "class Named(Scorer):\n"
        "    class Options(StageOptions):\n"
        "        weight: float = Field(default=1.0, alias='lambda')\n"
        "    @hookimpl\n"
        "    def score(self, candidates): return candidates.frames * self.options.weight\n"
    )
    register(tmp_path, "tetherflow-named", "[tetherflow.policies]\nnamed = tetherflow_named:Named\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: tethercache\nstages: {score: {use: named, lambda: 2.5}}\n")
    recipe = load_recipe(mine)
    assert recipe.stages.score[0].options == {"lambda": 2.5}
    assert pipeline_of(recipe).scorers[0].options.model_dump() == {"weight": 2.5}
    mine.write_text(dump_recipe(recipe))
    assert load_recipe(mine) == recipe
