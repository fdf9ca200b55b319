"""What recipes cost beside the first one."""

from __future__ import annotations

import json

import attrs
import pytest

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.cost import PolicyCost, check_chunks, measure_costs
from tetherflow.recipe import Recipe, load_recipe
from tetherflow.rollout.open_session import Backbones
from tetherflow.rollout.progress import RolloutProgress

pytestmark = pytest.mark.usefixtures("toy")


class Counting(RolloutProgress):
    """Counts chunks by what they belong to."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.total = 0
        self.labels: list[str] = []

    def start(self, chunks: int) -> None:
        self.total = chunks

    def chunk(self, seconds: float, frames: int, label: str) -> None:
        assert (seconds > 0, frames % 12) == (True, 0)
        self.labels.append(label)


def recipe(name: str) -> Recipe:
    return load_recipe(name, ["backbone.use=toy", "runtime.threads=1"])


def test_each_recipe_is_timed_beside_the_first() -> None:
    shown = Counting()
    names = ["fifo-relative", "tethercache", "sink-window"]
    first, second, third = measure_costs([recipe(name) for name in names], 28, Backbones(), shown)
    assert shown.total == len(shown.labels) == 2 * 28
    assert set(shown.labels) == {f"timing {name} beside fifo-relative" for name in names[1:]}
    assert first.relative is None
    for cost in (second, third):
        assert cost.relative is not None
        assert 0 < cost.relative.low <= cost.relative.value <= cost.relative.high
    for cost in (first, second, third):
        assert cost.chunk_seconds > 0
        assert (cost.chunks, cost.device) == (28, "cpu")
        assert PolicyCost.from_dict(json.loads(json.dumps(attrs.asdict(cost)))) == cost
    # Its memory makes room for what was just evicted to compete with what is there.
    assert second.cache_bytes > first.cache_bytes > 0


def test_one_recipe_is_timed_alone() -> None:
    (only,) = measure_costs([recipe("fifo")], 28, Backbones(), Counting())
    assert (only.relative, only.chunks) == (None, 28)


def test_too_few_chunks_are_refused() -> None:
    for fine in (0, 28, 300):
        check_chunks(fine)
    for wrong in (-1, 1, 27):
        with pytest.raises(EvaluationError, match=f"{wrong} chunks do not tell"):
            check_chunks(wrong)
