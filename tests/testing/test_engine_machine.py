"""The engine's invariants, as the kit holds them: broken engines are found out, each by what it breaks."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tetherflow import Layout
from tetherflow.cache import CacheEngine
from tetherflow.errors import ConformanceError
from tetherflow.testing import Model, complete
from tetherflow.testing.companions import Spread
from tetherflow.testing.machine import EngineMachine


class Sound(CacheEngine):
    """An engine without fault."""


class Forgetful(CacheEngine):
    """Names nothing that it drops."""

    def end(self) -> None:
        super().end()
        self.dropped = [self.dropped[0][:, :0] for _ in self.layers]


class NamesTooMuch(CacheEngine):
    """Says that it dropped the newest frame, which it holds."""

    def end(self) -> None:
        super().end()
        self.dropped = [torch.full((self.batch, 1), self.frames_written - 1) for _ in self.layers]


class Restless(CacheEngine):
    """Lets the sink fade."""

    def end(self) -> None:
        super().end()
        for store in self.layers:
            store.values[:, store.order[0, 0]] *= 0.9


class Scribbler(CacheEngine):
    """Edits what has long been in memory."""

    def end(self) -> None:
        super().end()
        if self.held == self.layout.budget:
            for store in self.layers:
                store.keys[:, store.order[0, self.layout.sink]] += 1


class Infinite(CacheEngine):
    """Lets the newest frame overflow."""

    def end(self) -> None:
        super().end()
        for store in self.layers:
            store.values[:, store.order[0, -1]] = float("inf")


class Greedy(CacheEngine):
    """Takes more memory with every chunk."""

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.frames_written


class Amnesiac(CacheEngine):
    """Restores a snapshot but for the last layer's values."""

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.layers[-1].values.zero_()


class Liar(CacheEngine):
    """Tells of other frames than it holds, once it has been asked to lie."""

    shift: tuple[slice, int] | None = None

    def origins(self) -> torch.Tensor:
        found = super().origins()
        if self.shift is not None:
            ranks, by = self.shift
            found[:, :, ranks] += by
        return found


def machine(engine: type[CacheEngine]) -> type[EngineMachine]:
    """Drives one kind of engine."""

    class Machine(EngineMachine):
        def open(self, data: st.DataObject) -> None:
            self.model = Model()
            self.engine = engine(
                self.model.shape, Layout(1, 2, 3), complete(Spread()), self.model.rotary, batch=2
            )
            self.generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    return Machine


def drive(engine: type[CacheEngine]) -> None:
    few = settings(max_examples=20, stateful_step_count=8, deadline=None, report_multiple_bugs=False,
                   database=None, phases=[Phase.generate])  # fmt: skip
    run_state_machine_as_test(machine(engine), settings=few)  # type: ignore[no-untyped-call]


def test_sound_engine_passes() -> None:
    drive(Sound)


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        (Forgetful, r"frames \[[\d, ]+\] are neither held nor dropped by name"),
        (NamesTooMuch, r"\[[\d, ]+\] are accounted for more than once"),
        (Restless, r"frame 0 in layer 0, sample 0, (is of the sink, yet it )?changed"),
        (Scribbler, "changed, although it was not just admitted to memory"),
        (Infinite, "in layer 0, sample 0, is not finite"),
        (Greedy, r"the cache grew from \d+ to \d+ bytes"),
        (Amnesiac, "a restored snapshot changed frame"),
    ],
)
def test_broken_engine_is_found_out(engine: type[CacheEngine], text: str) -> None:
    with pytest.raises(ConformanceError, match=text):
        drive(engine)


def test_error_says_where_the_engine_stood() -> None:
    with pytest.raises(
        ConformanceError, match=r"^after \d+ frames in regions Layout\(sink=\d, memory=\d, recent"
    ):
        drive(Restless)


@pytest.mark.parametrize(
    ("invariant", "ranks", "by", "text"),
    [
        (
            "frames_held_are_unique_and_in_order",
            slice(-2, -1),
            1,
            r"layer 0 holds .*5, 5\] .*: a frame twice",
        ),
        ("sink_is_the_first_frames", slice(0, 1), 1, r"sink of layer 0, sample 0, is frames \[1\]"),
        (
            "recent_is_the_last_frames_in_order",
            slice(-1, None),
            1,
            r"as recent for sample 0, not \[3, 4, 5\]",
        ),
        ("memory_lies_between_sink_and_recent", slice(1, 2), 9, r"layer 0 holds \[10, 2\] as memory"),
        (
            "every_frame_is_held_or_was_dropped_once",
            slice(0, 1),
            1,
            r"\[0\] are neither .* \[1\] are accounted",
        ),
    ],
)
def test_invariant_says_what_is_wrong(invariant: str, ranks: slice, by: int, text: str) -> None:
    steps = machine(Liar)()
    steps.start(None, True)  # type: ignore[arg-type]  # this machine draws nothing
    assert isinstance(steps.engine, Liar)
    getattr(steps, invariant)()
    steps.engine.shift = (ranks, by)
    with pytest.raises(ConformanceError, match=text):
        getattr(steps, invariant)()


def test_more_than_the_budget_is_refused() -> None:
    steps = machine(Sound)()
    steps.start(None, True)  # type: ignore[arg-type]
    steps.engine.layout = Layout(1, 2, 2)
    with pytest.raises(ConformanceError, match="6 frames are held; the budget is 5"):
        steps.occupancy_never_exceeds_the_budget()
