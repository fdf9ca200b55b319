"""Options that move: what a stage finds in each call, and what a schedule may not be."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from pydantic import Field
from torch import Tensor

from tests.cache.drive import Sizes, assert_same, assert_same_record, contents
from tetherflow import (
    Draft,
    Editor,
    Event,
    Eviction,
    Evictor,
    Layout,
    Newcomers,
    Schedule,
    Scorer,
    SignalSchedule,
    StageOptions,
    TimeSchedule,
    hookimpl,
)
from tetherflow.cache import CacheEngine
from tetherflow.errors import PipelineError, StageError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import run, write_script
from tetherflow_policies.drift_distance import DriftDistance, distance
from tetherflow_policies.grab import Relevance, TemporalDiversity, TopM
from tetherflow_policies.ramp import Ramp
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame

MODEL = Sizes(layers=2, heads=2, head_dim=12, grid=(2, 2))
LAYOUT = Layout(1, 3, 3)
FRAMES = [3] * 7
Schedules = Mapping[str, Mapping[str, Schedule]]


def ramp(first: float, last: float, seconds: float = 3.0) -> Ramp:
    return Ramp(Ramp.Options.model_validate({"from": first, "to": last, "seconds": seconds}), name="ramp")


def by_distance(low: float = 0.1, high: float = 0.9) -> DriftDistance:
    return DriftDistance(DriftDistance.Options(low=low, high=high, near=0.3, far=0.9), name="drift-distance")


def policy(
    schedules: Schedules | None = None, *, tau: float = 0.6, alpha: float = 0.35, editor: Editor | None = None
) -> Pipeline:
    diversity = TemporalDiversity(TemporalDiversity.Options(alpha=alpha), name="temporal-diversity")
    edit = editor or Tame(Tame.Options(tau=tau), name="tame")
    scorers = [Relevance(name="relevance"), diversity]
    return Pipeline(RecallWindow(), scorers, TopM(), [edit], schedules=schedules)


def engine(pipeline: Pipeline, *, batch: int = 1, strict: bool = True) -> CacheEngine:
    return MODEL.engine(LAYOUT, pipeline, batch=batch, strict=strict)


class Notes(Editor):
    """Notes the option that it finds."""

    class Options(StageOptions):
        strength: float = Field(default=0.5, ge=0, le=1)
        count: int = 3
        fast: bool = False
        size: int = 4

    options: Options
    fixed = ("size",)

    def __init__(self) -> None:
        super().__init__(name="notes")
        self.found: list[tuple[int, float | Tensor, int]] = []

    @hookimpl
    def edit(self, draft: Draft) -> None:
        self.found.append((draft.first_frame, self.options.strength, self.options.count))


def test_over_time_an_option_is_the_formulas_number() -> None:
    notes = Notes()
    pipeline = Pipeline(
        RecallWindow(),
        [Relevance(name="relevance")],
        TopM(),
        [notes],
        schedules={"notes": {"strength": ramp(0.2, 0.8, 3.0), "count": ramp(1, 9, 3.0)}},
        frame_seconds=0.2,
    )
    run(engine(pipeline, batch=2), write_script(MODEL, FRAMES, seeds=[1, 2]))
    assert {frame for frame, _, _ in notes.found} == {6, 9, 12, 15, 18}  # the cache holds 7 frames
    for frame, strength, count in notes.found:
        share = min(frame * 0.2 / 3, 1)
        assert isinstance(strength, float)
        assert strength == pytest.approx(0.2 + 0.6 * share)
        assert count == round(1 + 8 * share)
    assert notes.options == Notes.Options()  # as before, between calls


def test_a_signal_is_a_number_a_sample_of_this_layer() -> None:
    notes = Notes()
    shown: list[Newcomers] = []

    class Seen(DriftDistance):
        def measure(self, newcomers: Newcomers) -> Tensor:
            shown.append(newcomers)
            return super().measure(newcomers)

    schedule = Seen(by_distance().options)
    pipeline = policy({"notes": {"strength": schedule}}, editor=notes)
    run(engine(pipeline, batch=3), write_script(MODEL, FRAMES, seeds=[1, 2, 3]))
    assert len(notes.found) == 3 * len(shown) == 3 * MODEL.layers * 5
    for index, (_, strength, _) in enumerate(notes.found):
        call, row = divmod(index, 3)
        own, pool = shown[call].values, shown[call].trusted_values
        keys = distance(shown[call].keys, shown[call].trusted_keys)[row]
        d = (float(keys) + float(distance(own, pool)[row])) / 2
        assert isinstance(strength, Tensor)
        assert strength.shape == ()
        assert float(strength) == pytest.approx(0.1 + 0.8 * min(max((d - 0.3) / 0.6, 0), 1), abs=1e-5)
    strengths = [float(strength) for _, strength, _ in notes.found]
    assert len(set(strengths)) > len(strengths) // 2


def test_an_edit_by_a_signal_is_the_edit_by_its_value() -> None:
    """One chunk of TAME under a signal, against TAME at the value that the signal gave."""
    script = write_script(MODEL, FRAMES[:3], seeds=[5])
    values: list[float] = []

    class Seen(DriftDistance):
        def measure(self, newcomers: Newcomers) -> Tensor:
            values.append(float(super().measure(newcomers)))
            return super().measure(newcomers)

    moved = engine(policy({"tame": {"tau": Seen(by_distance().options)}}))
    run(moved, script)
    assert len(values) == MODEL.layers
    for layer, tau in enumerate(values):
        fixed = engine(policy(tau=tau))
        run(fixed, script)
        for a, b in zip(moved.contents(layer), fixed.contents(layer), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


EVERY: Schedules = {
    "temporal-diversity": {"alpha": by_distance()},
    "tame": {"tau": by_distance()},
    "relevance": {"temperature": ramp(0.5, 2.0)},
}


def test_a_batch_is_its_samples_alone() -> None:
    script = write_script(MODEL, FRAMES, seeds=[1, 2, 3])
    together = engine(policy(EVERY), batch=3)
    record = run(together, script)
    for row in range(3):
        alone = engine(policy(EVERY))
        own = run(alone, [chunk.row(row) for chunk in script])
        for a, b in zip(record.origins, own.origins, strict=True):
            assert torch.equal(a[:, row], b[:, 0])
        for a, b in zip(record.attended, own.attended, strict=True):
            torch.testing.assert_close(a[row], b[0], atol=1e-5, rtol=1e-5)


def test_a_snapshot_goes_on_bit_for_bit() -> None:
    script = write_script(MODEL, FRAMES, seeds=[1, 2])
    whole, resumed = engine(policy(EVERY), batch=2), engine(policy(EVERY), batch=2)
    run(whole, script[:5])
    resumed.restore(whole.snapshot())
    assert_same_record(run(whole, script[5:]), run(resumed, script[5:]))
    assert_same(contents(whole), contents(resumed))


def test_a_schedule_that_stands_still_is_the_fixed_value() -> None:
    script = write_script(MODEL, FRAMES, seeds=[1, 2])
    fixed, timed, measured = (
        engine(policy(schedules, tau=0.7), batch=2)
        for schedules in (None, {"tame": {"tau": ramp(0.7, 0.7)}}, {"tame": {"tau": by_distance(0.7, 0.7)}})
    )
    expected = run(fixed, script)
    assert_same_record(expected, run(timed, script))
    assert_same(contents(fixed), contents(timed))
    found = run(measured, script)  # a tensor of float32 in place of a number of float64: up to rounding
    for a, b in zip(expected.attended, found.attended, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_what_a_schedule_gives_past_its_bounds_is_brought_back() -> None:
    class Wild(TimeSchedule):
        bounds = (0.2, 0.4)

        def at(self, seconds: float) -> float:
            return 10 - 20 * (seconds > 3)

    notes = Notes()
    pipeline = policy({"notes": {"strength": Wild()}}, editor=notes)
    run(engine(pipeline), write_script(MODEL, FRAMES))
    assert [strength for _, strength, _ in notes.found[:: MODEL.layers]] == [0.4, 0.4, 0.4, 0.2, 0.2]


def test_a_time_schedule_that_is_not_finite_is_refused() -> None:
    class Nowhere(TimeSchedule):
        bounds = (0.0, 1.0)

        def at(self, seconds: float) -> float:
            return float("nan")

    cache = engine(policy({"tame": {"tau": Nowhere(name="nowhere")}}))
    with pytest.raises(
        StageError, match="'nowhere' of its option 'tau' returned nan; expected a finite number"
    ):
        run(cache, write_script(MODEL, FRAMES))


class Signal(SignalSchedule):
    bounds = (0.0, 1.0)
    result: object = None

    def measure(self, newcomers: Newcomers) -> Tensor:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (0.5, "returned a float; expected a tensor, a number a sample"),
        (torch.zeros(3), r"returned torch.float32 \[3\] on cpu; expected floating point \[2\] on cpu"),
        (torch.zeros(2, dtype=torch.int64), r"returned torch.int64 \[2\]"),
        (torch.zeros(2, device="meta"), r"returned torch.float32 \[2\] on meta; expected"),
        (torch.tensor([0.5, float("nan")]), "is not finite"),
        (KeyError("keys"), "raised KeyError: 'keys'"),
    ],
)
def test_errors_name_plugin_place_and_schedule(result: object, message: str) -> None:
    schedule = Signal(name="mine")
    schedule.result = result
    cache = engine(policy({"tame": {"tau": schedule}}), batch=2)
    with pytest.raises(
        StageError,
        match=rf"'tame' \(stage 'edit', layer 0, chunk 2\).*schedule 'mine' of its option 'tau' {message}",
    ):
        run(cache, write_script(MODEL, FRAMES, seeds=[1, 2]))


def test_a_signal_that_is_not_finite_is_found_a_chunk_late_where_checks_are_deferred() -> None:
    schedule = Signal(name="mine")
    schedule.result = torch.tensor([float("inf")])
    cache = engine(policy({"tame": {"tau": schedule}}), strict=False)
    with pytest.raises(StageError, match=r"chunk 2\): schedule 'mine' of its option 'tau' is not"):
        run(cache, write_script(MODEL, FRAMES))
    assert cache.chunk == 3


class Keeper(Evictor):
    """Reads an option at a prompt switch."""

    class Options(StageOptions):
        keep: int = 2

    options: Options

    @hookimpl
    def evict(self, count: int) -> Eviction:
        return Eviction(range(count))

    @hookimpl
    def switch(self, event: Event) -> int:
        return self.options.keep


def test_a_switch_has_its_time_too() -> None:
    schedules = {"Keeper": {"keep": ramp(1, 5, 2.0)}}
    pipeline = Pipeline(Keeper(), schedules=schedules, frame_seconds=0.25)
    assert [pipeline.switch(LAYOUT, Event("flush", frame)) for frame in (0, 4, 8, 90)] == [1, 3, 5, 5]


class Both(Scorer):
    """Scores and revises."""

    class Options(StageOptions):
        weight: float = 1.0

    @hookimpl
    def score(self) -> None: ...

    @hookimpl
    def revise(self) -> None: ...


class Neither(Schedule):
    bounds = (0.0, 1.0)


class Backwards(Signal):
    bounds = (1.0, 0.0)


@pytest.mark.parametrize(
    ("stage", "option", "schedule", "message"),
    [
        ("nobody", "tau", ramp(0, 1), "there is no plugin 'nobody' whose options could be scheduled"),
        ("notes", "tau", ramp(0, 1), "option 'tau' takes no number"),
        ("notes", "fast", ramp(0, 1), "option 'fast' takes no number"),
        ("notes", "size", ramp(1, 2), "option 'size' is read once, before the first chunk"),
        ("notes", "count", by_distance(), "takes a whole number, which 'drift-distance' cannot give"),
        ("notes", "strength", ramp(0, 2), "refuses what its schedules give"),
        ("notes", "strength", Neither(), "neither a TimeSchedule nor a SignalSchedule"),
        ("notes", "strength", Backwards(name="back"), "says that it moves between 1.0 and 0.0"),
        ("Both", "weight", by_distance(), "may be read in the plugin's 'revise', too"),
        ("Keeper", "keep", by_distance(), "takes a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(stage: str, option: str, schedule: Schedule, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline(
            RecallWindow() if stage != "Keeper" else Keeper(),
            [Both()] if stage != "Keeper" else [],
            TopM() if stage != "Keeper" else None,
            [Notes()] if stage != "Keeper" else [],
            schedules={stage: {option: schedule}},
        )


def test_a_stage_that_is_not_shown_newcomers_takes_no_signal() -> None:
    class Merging(Keeper):
        class Options(StageOptions):
            rate: float = 1.0

    with pytest.raises(PipelineError, match="belongs to stage 'evict', which is not shown"):
        Pipeline(Merging(), schedules={"Merging": {"rate": by_distance()}})
