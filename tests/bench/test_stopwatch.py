"""Parts of a time add up to the whole."""

from __future__ import annotations

import pytest
import torch

from tetherflow.bench import stopwatch
from tetherflow.bench.stopwatch import Stopwatch, seconds_of

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands where the test sets it."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_inner_parts_count_as_theirs_alone(clock: list[float]) -> None:
    watch = Stopwatch(CPU)

    def inner(seconds: float) -> float:
        clock[0] += seconds
        return seconds

    watched = watch.wrap("inner", inner)
    for _ in range(2):
        with watch.part("outer"):
            clock[0] += 1
            assert watched(10) == 10
            with watch.part("middle"):
                clock[0] += 100
                watched(seconds=1000)
    assert watch.seconds() == {"inner": 2020, "middle": 200, "outer": 2}


def test_a_part_ends_when_it_raises(clock: list[float]) -> None:
    watch = Stopwatch(CPU)

    def fail() -> None:
        clock[0] += 5
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"), watch.part("outer"):
        watch.wrap("inner", fail)()
    with watch.part("after"):
        clock[0] += 1
    assert watch.seconds() == {"inner": 5, "outer": 0, "after": 1}


def test_time_of_a_call_is_the_median_after_a_warm_up(clock: list[float]) -> None:
    costs = iter([50.0, 50.0, 50.0, 3.0, 1.0, 2.0, 100.0, 2.0])

    def call() -> None:
        clock[0] += next(costs)

    assert seconds_of(call, CPU, budget=1.0) == 2
