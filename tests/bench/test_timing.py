"""Timing recipes against each other."""

from __future__ import annotations

import pytest

from tetherflow.bench import compare
from tetherflow.bench import timing as bench
from tetherflow.errors import EvaluationError, WeightsError
from tetherflow.recipe import Recipe, load_recipe

pytestmark = pytest.mark.usefixtures("toy")


def recipe(name: str, *changes: str) -> Recipe:
    return load_recipe(name, ["backbone.use=toy", "runtime.threads=1", *changes])


def test_recipes_take_turns_and_are_compared_with_the_first() -> None:
    ticks: list[int] = []
    recipes = [recipe("fifo-relative"), recipe("tethercache"), recipe("fifo-relative")]
    first, second, again = compare(recipes, 30, lambda: ticks.append(1))
    assert len(ticks) == 30
    assert [timing.name for timing in (first, second, again)] == [
        "fifo-relative",
        "tethercache",
        "fifo-relative",
    ]
    assert (first.ratio, first.ratio_low, first.ratio_high) == (1, 1, 1)
    for timing in (first, second, again):
        assert timing.ratio_low <= timing.ratio <= timing.ratio_high
        assert min(timing.chunk_seconds, timing.early, timing.late) > 0
        assert timing.frames_per_second == pytest.approx(12 / timing.chunk_seconds)
        assert (timing.device, timing.dtype, timing.chunks) == ("cpu", "float32", 30)
        assert timing.weights_sha256 == "0" * 64
    # Its memory makes room for what was just evicted to compete with what is there.
    assert second.cache_bytes > first.cache_bytes == again.cache_bytes > 0


def test_decoding_is_not_timed() -> None:
    (timing,) = compare([recipe("fifo", "backbone.delay=5")], 30)
    assert timing.chunk_seconds < 1


def test_a_time_is_the_median_of_its_own_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe whose chunk i takes i ms, beside one that takes 2 i."""
    turns = iter(range(80))
    order = [index for chunk in range(40) for index in ((0, 1) if chunk % 2 == 0 else (1, 0))]

    def timed(stream: object, device: object) -> float:
        turn = next(turns)
        return (turn // 2 + 1) * (1 + order[turn]) / 1000

    monkeypatch.setattr(bench, "_timed", timed)
    one, two = compare([recipe("fifo"), recipe("fifo", "output.name=double")], 40)
    assert (one.early, one.late, one.chunk_seconds) == pytest.approx((0.0135, 0.0355, 0.0245))
    assert (two.early, two.late, two.chunk_seconds) == pytest.approx((0.027, 0.071, 0.049))
    assert (two.ratio, two.ratio_low, two.ratio_high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("chunks", [0, 27])
def test_too_few_chunks_are_refused_before_any_work(chunks: int) -> None:
    with pytest.raises(EvaluationError, match="give at least 28"):
        compare([recipe("fifo", "backbone.missing=true")], chunks)


def test_missing_weights_are_told() -> None:
    with pytest.raises(WeightsError):
        compare([recipe("fifo", "backbone.missing=true")], 30)
