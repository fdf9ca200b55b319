"""A stranger writes a scorer, packages it, installs it, and runs a recipe that uses it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.environments import environment, install
from tests.toys import toy
from tetherflow.errors import RecipeError
from tetherflow.recipe import load_recipe
from tetherflow.rollout.run import run_recipe

__all__ = ["toy"]

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "small-keys-policies"
version = "0.3.1"
dependencies = ["tetherflow"]

[project.entry-points."tetherflow.policies"]
small-keys = "small_keys_policies:SmallKeys"

[tool.hatch.build.targets.wheel]
only-include = ["small_keys_policies.py"]
"""

PLUGIN = '''\
import torch

from tetherflow import Candidates, Scorer, StageOptions, hookimpl


class SmallKeys(Scorer):
    """Prefer frames whose mean key is small (after arXiv 2406.11430)."""

    class Options(StageOptions):
        weight: float = 1.0

    @hookimpl
    def score(self, candidates: Candidates) -> torch.Tensor:
        return -self.options.weight * candidates.mean_keys.norm(dim=-1).mean(dim=-1)  # [B, N]
'''

RECIPE = """\
extends: tethercache
backbone: toy
stages:
  score: [{use: small-keys, weight: 2.0}]
rollout: {latent_frames: 36, prompts: [anything]}
runtime: {threads: 1}
"""


@pytest.mark.slow
def test_stranger_installs_a_scorer_and_runs_it(toy: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "small_keys_policies.py").write_text(PLUGIN)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE)

    with pytest.raises(RecipeError, match=r"no stage plugin named 'small-keys' is installed.*pip install"):
        load_recipe(recipe)

    python = environment(tmp_path / "environment")
    install(python, source)

    def tetherflow(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "tetherflow", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)

    listed = {plugin["name"]: plugin for plugin in json.loads(tetherflow("plugins", "--json").stdout)}
    assert listed["small-keys"] == {
        "name": "small-keys",
        "group": "tetherflow.policies",
        "stage": "score",
        "distribution": "small-keys-policies",
        "version": "0.3.1",
        "target": "small_keys_policies:SmallKeys",
        "summary": "Prefer frames whose mean key is small (after arXiv 2406.11430).",
        "error": None,
    }

    refused = tetherflow("check", recipe, "--set", "stages.score.0.weight=heavy")
    assert refused.returncode == 2
    assert "stages.score.0.weight: 'heavy' is not a number" in refused.stderr

    finished = tetherflow("run", recipe)
    assert finished.returncode == 0, finished.stderr
    video = Path(finished.stdout.strip())
    lock = json.loads((video.parent.parent / "lock.json").read_text())
    assert lock["plugins"]["small-keys"] == {"distribution": "small-keys-policies", "version": "0.3.1"}

    # It decides: with the default scorer another video comes out.
    usual = run_recipe(
        load_recipe(
            "tethercache",
            ["backbone.use=toy", "stages.score=[relevance]", "rollout.latent_frames=36", "runtime.threads=1",
             "rollout.prompts=[anything]", f"output.folder='{tmp_path / 'usual'}'"],
        )
    )  # fmt: skip
    assert (usual.folder.path / str(usual.videos[0].file)).read_bytes() != video.read_bytes()
