"""Other implementations: how they are named, what they are asked for, and what goes wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench import rival
from tetherflow.bench import compare, load_implementation
from tetherflow.errors import EvaluationError
from tetherflow.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("toy")
TOY = ["backbone.use=toy", "runtime.threads=1"]


def test_it_is_timed_beside_the_recipes_for_the_same_work() -> None:
    rival.WORKLOADS.clear()
    name = "tests.bench.rival:instant"
    ours, theirs = compare([load_recipe("fifo", TOY)], 28, rivals={name: load_implementation(name)})
    assert (theirs.name, theirs.cache_bytes, theirs.weights_sha256) == (name, 0, "")
    assert theirs.chunk_seconds < ours.chunk_seconds
    assert 0 < theirs.ratio < 1
    (work,) = rival.WORKLOADS
    assert (work.chunks, work.chunk_frames, work.passes, work.budget) == (28, 3, 5, 21)
    assert (work.layers, work.heads, work.head_dim, work.tokens) == (2, 2, 24, 16)
    assert (work.device, work.dtype) == (torch.device("cpu"), torch.float32)
    assert work.latent_shape == (4, 8, 8)


def test_one_that_stops_early_is_named() -> None:
    rivals = {"lazy one": rival.lazy}
    with pytest.raises(EvaluationError, match="lazy one generated 26 chunks of the 28"):
        compare([load_recipe("fifo", TOY)], 28, rivals=rivals)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tests.bench.rival", "give a function to import, as MODULE:FUNCTION"),
        ("tests.bench.rival:", "give a function to import, as MODULE:FUNCTION"),
        ("no.such.module:run", "No module named 'no'; is its folder on PYTHONPATH"),
        ("tests.bench.rival:nothing", "has no attribute 'nothing'"),
        ("tests.bench.rival:NUMBER", "NUMBER is int, not a function"),
    ],
)
def test_reference_that_leads_nowhere_is_told(reference: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_implementation(reference)


def test_the_one_in_the_documentation_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "benchmarks.md"
    (code,) = re.findall(r"^```python[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)  # noqa: S102
    recipes = [load_recipe("fifo", TOY)]
    timings = compare(recipes, 28, rivals={"attention alone": space["attention_alone"]})
    assert 0 < timings[1].ratio < 1


@pytest.mark.parametrize("name", ["tethercache", "tethercache_cudnn", "self_forcing", "self_forcing_cudnn"])
def test_the_published_code_asks_for_its_clone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs" / "rivals")
    rivals = {name: load_implementation(f"published_tethercache:{name}")}
    with pytest.raises(EvaluationError, match="No module named 'wan'; put a clone of it on PYTHONPATH"):
        compare([load_recipe("fifo", TOY)], 28, rivals=rivals)
