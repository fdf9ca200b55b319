"""The pipeline: which stages make up a policy, and what a plugin may return.

A plugin's fault is an error that names the plugin, the stage, the layer and the chunk; a fault that only the
tensors' contents show is reported at once in strict mode, and a chunk late in deferred mode.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from tests.cache.drive import Sizes, run, write_script
from tests.cache.plugins import DrawSelector, ScatterEvictor, tethercache
from tetherflow import (
    Candidates,
    Destination,
    Draft,
    Editor,
    Eviction,
    Evictor,
    Layout,
    Scorer,
    Selector,
    Slots,
    Stage,
    StageOptions,
    hookimpl,
)
from tetherflow.cache import CacheEngine
from tetherflow.cache.checks import Checks
from tetherflow.errors import LayoutError, PipelineError, StageError
from tetherflow.pipeline import Pipeline
from tetherflow_policies.grab import Relevance, TemporalDiversity, TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow
from tetherflow_policies.tame import Tame

SIZES = Sizes(layers=2, heads=1, head_dim=4, grid=(1, 2))
LAYOUT = Layout(1, 2, 3)
FILLING = [3, 3]
"""Chunks after which the cache is full, so that the next one (chunk 2) asks every stage."""


# --- cardinality --------------------------------------------------------------------------------------


class Flat(Scorer):
    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return torch.zeros(candidates.origins.shape)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Pipeline(RecallWindow()), "'RecallWindow' sends units to memory, but there is no selector"),
        (
            lambda: Pipeline(RecallWindow(), [Flat()]),
            "'Flat' would never run: a pipeline with scorers or editors needs one selector",
        ),
        (
            lambda: Pipeline(RecallWindow(), [Flat()], edit=[Tame()]),
            "'Flat', 'Tame' would never run: a pipeline with scorers or editors needs one selector",
        ),
        (lambda: Pipeline(SinkWindow(), edit=[Tame()]), "'Tame' would never run"),
        (
            lambda: Pipeline(SinkWindow(), select=TopM()),
            "selector 'TopM' would never run: evictor 'SinkWindow' drops what leaves; use one that sends",
        ),
        (
            lambda: Pipeline(RecallWindow(), [Flat(), Flat()], TopM()),
            "plugin 'Flat' appears 2 times; each stage plugin may appear once",
        ),
        (
            lambda: Pipeline(RecallWindow(), [], TopM(), [Tame(name="x"), Tame(name="x")]),
            "plugin 'x' appears 2 times",
        ),
        (lambda: Pipeline(TopM()), "'TopM' is no Evictor and cannot serve as stage 'evict'"),  # type: ignore[arg-type]
        (lambda: Pipeline(None), "'None' is no Evictor and cannot serve as stage 'evict'"),  # type: ignore[arg-type]
        (
            lambda: Pipeline(RecallWindow(), select=Flat()),  # type: ignore[arg-type]
            "'Flat' is no Selector and cannot serve as stage 'select'",
        ),
        (
            lambda: Pipeline(RecallWindow(), [TopM()], TopM(name="other")),  # type: ignore[list-item]
            "'TopM' is no Scorer and cannot serve as stage 'score'",
        ),
        (
            lambda: Pipeline(RecallWindow(), [], TopM(), [Flat()]),  # type: ignore[list-item]
            "'Flat' is no Editor and cannot serve as stage 'edit'",
        ),
    ],
)
def test_stages_that_make_up_no_policy_are_refused(build: Callable[[], Pipeline], text: str) -> None:
    with pytest.raises(PipelineError, match=text):
        build()


def test_stages_run_in_the_order_of_the_recipe() -> None:
    pipeline = tethercache()
    assert [stage.name for stage in pipeline.stages] == [
        "recall-window",
        "relevance",
        "temporal-diversity",
        "top-m",
        "tame",
    ]
    assert pipeline.recalls
    assert not Pipeline(SinkWindow()).recalls


def test_name_of_a_stage_is_its_class_unless_given() -> None:
    assert TopM().name == "TopM"
    assert TopM(name="top-m").name == "top-m"


# --- hook implementations -----------------------------------------------------------------------------


class Unmarked(Scorer):
    def score(self, candidates: Candidates) -> Tensor:
        return torch.zeros(candidates.origins.shape)


class Misspelt(Scorer):
    @hookimpl
    def score(self, candidate: Candidates) -> Tensor:
        return torch.zeros(candidate.origins.shape)


class Greedy(Scorer):
    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return torch.zeros(candidates.origins.shape)

    @hookimpl
    def edit(self, draft: Draft) -> None:
        pass


class Elsewhere(Scorer):
    @hookimpl
    def select(self, score: Tensor) -> Tensor:
        return score


class Unknown(Scorer):
    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return torch.zeros(candidates.origins.shape)

    @hookimpl
    def rescore(self) -> None:
        pass


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (
            Unmarked(),
            "plugin 'Unmarked' must implement the hook 'score' with @hookimpl, .*implements: none",
        ),
        (Greedy(), "'Greedy' must implement the hook 'score' .*; it implements: "),
        (Elsewhere(), "'Elsewhere' must implement the hook 'score' .*; it implements: select"),
        (Misspelt(), "(?s)plugin 'Misspelt' does not fit its hook: .*candidate"),
        (Unknown(), "(?s)plugin 'Unknown' does not fit its hook: .*rescore"),
    ],
)
def test_plugin_that_does_not_fit_its_hook_is_refused(stage: Scorer, text: str) -> None:
    with pytest.raises(PipelineError, match=text):
        Pipeline(RecallWindow(), [stage], TopM())


def test_plugin_that_defines_equality_is_refused() -> None:
    """pluggy compares plugins by equality, and would take two for one."""

    @attrs.define
    class Equal(Scorer):
        @hookimpl
        def score(self, candidates: Candidates) -> Tensor:
            return torch.zeros(candidates.origins.shape)

        @property
        def name(self) -> str:  # type: ignore[override]
            return "equal"

    with pytest.raises(
        PipelineError, match="plugin 'equal' defines equality; pluggy needs stages that equal only"
    ):
        Pipeline(RecallWindow(), [Equal()], TopM())


def test_implementation_may_name_just_what_it_needs() -> None:
    class Blind(Scorer):
        @hookimpl
        def score(self, scores: Mapping[str, Tensor]) -> Tensor:
            return torch.zeros_like(scores["Flat"])

    engine = SIZES.engine(LAYOUT, Pipeline(RecallWindow(), [Flat(), Blind()], TopM()))
    run(engine, write_script(SIZES, [*FILLING, 3]))


def test_two_pipelines_share_nothing() -> None:
    """Each has a plugin manager of its own, so the same stage may serve in both."""
    flat, top = Flat(), TopM()
    first = Pipeline(RecallWindow(), [flat], top)
    second = Pipeline(RecallWindow(), [flat, Relevance()], top)
    assert first.manager is not second.manager
    assert len(first.manager.get_plugins()) == 3
    assert len(second.manager.get_plugins()) == 4


# --- order --------------------------------------------------------------------------------------------


class Scale(Scorer):
    """Says which scores it saw, and scores a constant."""

    def __init__(self, name: str, log: list[Any], value: float) -> None:
        super().__init__(name=name)
        self.log, self.value = log, value

    @hookimpl
    def score(self, candidates: Candidates, scores: Mapping[str, Tensor]) -> Tensor:
        self.log.append((self.name, {name: float(score[0, 0]) for name, score in scores.items()}))
        return torch.full(candidates.origins.shape, self.value)


class Blend(Editor):
    """x ← 2x + own value: two of them do not commute."""

    def __init__(self, name: str, value: float) -> None:
        super().__init__(name=name)
        self.value = value

    @hookimpl
    def edit(self, draft: Draft) -> None:
        draft.keys = 2 * draft.keys + self.value
        draft.values.mul_(2).add_(self.value)


class Recorder(Selector):
    """Keeps all that it was given, and admits the newest."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Tensor, dict[str, Tensor], Tensor, Tensor]] = []

    @hookimpl
    def select(self, candidates: Candidates, score: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        self.given.append((score, dict(scores), candidates.read_keys(), candidates.read_values()))
        count = candidates.origins.shape[1]
        return torch.arange(count - candidates.capacity, count)[None]


def test_scorers_run_in_recipe_order_and_add_up() -> None:
    log: list[Any] = []
    recorder = Recorder()
    scorers = [Scale("one", log, 1.0), Scale("two", log, 0.25), Scale("three", log, -3.0)]
    engine = SIZES.engine(LAYOUT, Pipeline(RecallWindow(), scorers, recorder))
    run(engine, write_script(SIZES, [*FILLING, 3]))
    assert log[:3] == [("one", {}), ("two", {"one": 1.0}), ("three", {"one": 1.0, "two": 0.25})]
    score, scores, _, _ = recorder.given[0]
    assert score.dtype == torch.float32
    assert torch.equal(score, torch.full((1, 5), -1.75))
    assert list(scores) == ["one", "two", "three"]


def test_editor_that_swaps_keys_and_values_gets_what_it_asked_for() -> None:
    class Swap(Editor):
        @hookimpl
        def edit(self, draft: Draft) -> None:
            draft.keys, draft.values = draft.values, draft.keys

    recorder = Recorder()
    engine = SIZES.engine(LAYOUT, Pipeline(RecallWindow(), select=recorder, edit=[Swap()]))
    run(engine, write_script(SIZES, [*FILLING, 3]))
    _, _, keys, values = recorder.given[0]  # of layer 0
    found_keys, found_values = (x[:, 1:3] for x in engine.contents(0))
    assert torch.equal(found_keys, values[:, -2:])
    assert torch.equal(found_values, keys[:, -2:])


def test_editors_run_in_recipe_order() -> None:
    recorder = Recorder()
    policy = Pipeline(RecallWindow(), select=recorder, edit=[Blend("first", 1.0), Blend("second", 10.0)])
    engine = SIZES.engine(LAYOUT, policy)
    script = write_script(SIZES, [*FILLING, 3])
    run(engine, script)
    _, _, keys, values = recorder.given[0]  # of layer 0
    found_keys, found_values = (x[:, 1:3] for x in engine.contents(0))
    torch.testing.assert_close(found_keys, 2 * (2 * keys[:, -2:] + 1) + 10)
    torch.testing.assert_close(found_values, 2 * (2 * values[:, -2:] + 1) + 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_scores_of_any_floating_type_are_taken(dtype: torch.dtype) -> None:
    class Half(Scorer):
        @hookimpl
        def score(self, candidates: Candidates) -> Tensor:
            return candidates.origins.to(dtype)

    engine = SIZES.engine(LAYOUT, Pipeline(RecallWindow(), [Half()], TopM()))
    run(engine, write_script(SIZES, [*FILLING, 3]))
    assert engine.memory_origins()[0, 0].tolist() == [4, 5]


# --- faults -------------------------------------------------------------------------------------------


@attrs.frozen
class Fault:
    """What a faulty plugin does, and what the error must say.

    Attributes:
        act: the body of the hook.
        text: pattern of the message.
        deferred: whether only a tensor's contents show it, so that deferred checks report it a chunk late.
    """

    act: Callable[..., Any]
    text: str
    deferred: bool = False


def boom(_: object) -> None:
    raise ZeroDivisionError("by hand")


def complain(_: object) -> None:
    raise LayoutError("told on purpose")


RAISING = {
    "raises": Fault(boom, "raised ZeroDivisionError: by hand"),
    "raises-ours": Fault(complain, "told on purpose"),
}

EVICT_FAULTS = RAISING | {
    "none": Fault(lambda slots: None, "returned nothing; expected an Eviction"),
    "a-tensor": Fault(
        lambda slots: torch.zeros(1, 3), r"returned torch.float32 \[1, 3\] on cpu; expected an Eviction"
    ),
    "listed-eviction": Fault(lambda slots: [Eviction(range(1, 4))], "returned a list; expected an Eviction"),
    "sink": Fault(
        lambda slots: Eviction(range(3)),
        r"evicts range\(0, 3\); ranks must lie from 1, past the sink, below 6",
    ),
    "beyond": Fault(lambda slots: Eviction(range(4, 7)), r"evicts range\(4, 7\); ranks must lie from 1"),
    "negative": Fault(lambda slots: Eviction(range(-3, 0)), r"evicts range\(-3, 0\); ranks must lie from 1"),
    "too-few": Fault(lambda slots: Eviction(range(1, 3)), r"returned range\(1, 3\); expected 3 ranks"),
    "too-many": Fault(lambda slots: Eviction(range(1, 5)), r"returned range\(1, 5\); expected 3 ranks"),
    "backwards": Fault(lambda slots: Eviction(range(3, 0, -1)), "expected 3 ranks in ascending order"),
    "strided": Fault(lambda slots: Eviction(range(0, 6, 2)), "expected 3 ranks in ascending order, step 1"),
    "elsewhere": Fault(
        lambda slots: Eviction(range(1, 4), to="memory"),
        "sends units to 'memory' but declares destination 'drop'",
    ),
    "python-list": Fault(lambda slots: Eviction([1, 2, 3]), r"returned a list; expected integers \[2, 3\]"),  # type: ignore[arg-type]
    "shape": Fault(
        lambda slots: Eviction(torch.tensor([1, 2, 3])),
        r"returned torch.int64 \[3\] on cpu; expected integers \[2, 3\]",
    ),
    "count": Fault(
        lambda slots: Eviction(torch.tensor([[1, 2]] * 2)), r"returned torch.int64 \[2, 2\] on cpu"
    ),
    "floats": Fault(
        lambda slots: Eviction(torch.tensor([[1.0, 2, 3]] * 2)), r"returned torch.float32 \[2, 3\]"
    ),
    "bools": Fault(
        lambda slots: Eviction(torch.ones(2, 3, dtype=torch.bool)), r"returned torch.bool \[2, 3\]"
    ),
    "device": Fault(
        lambda slots: Eviction(torch.ones(2, 3, dtype=torch.int64, device="meta")),
        r"returned torch.int64 \[2, 3\] on meta; expected integers \[2, 3\] on cpu",
    ),
    "tensor-sink": Fault(
        lambda slots: Eviction(torch.tensor([[1, 2, 3], [2, 1, 0]])),
        "evicts a rank out of range",
        deferred=True,
    ),
    "tensor-beyond": Fault(
        lambda slots: Eviction(torch.tensor([[6, 2, 3], [1, 2, 3]])),
        "evicts a rank out of range; ranks must lie from 1, past the sink, below 6",
        deferred=True,
    ),
    "tensor-negative": Fault(
        lambda slots: Eviction(torch.tensor([[1, 2, 3], [1, -1, 3]])),
        "evicts a rank out of range",
        deferred=True,
    ),
    "tensor-twice": Fault(
        lambda slots: Eviction(torch.tensor([[1, 2, 3], [4, 2, 4]])), "evicts a unit twice", deferred=True
    ),
}

SCORE_FAULTS = RAISING | {
    "none": Fault(lambda candidates: None, r"returned nothing; expected floating point \[2, 5\]"),
    "number": Fault(lambda candidates: 1.0, "returned a float; expected floating point"),
    "python-list": Fault(lambda candidates: [[0.0] * 5] * 2, "returned a list; expected floating point"),
    "listed-tensor": Fault(
        lambda candidates: [torch.zeros(2, 5)], "returned a list; expected floating point"
    ),
    "shape": Fault(
        lambda candidates: torch.zeros(5), r"returned torch.float32 \[5\] on cpu; expected floating point"
    ),
    "too-few": Fault(lambda candidates: torch.zeros(2, 4), r"returned torch.float32 \[2, 4\] on cpu"),
    "integers": Fault(
        lambda candidates: candidates.origins, r"returned torch.int64 \[2, 5\] on cpu; expected floating"
    ),
    "complex": Fault(lambda candidates: torch.zeros(2, 5, dtype=torch.complex64), "returned torch.complex64"),
    "device": Fault(
        lambda candidates: torch.zeros(2, 5, device="meta"), "returned a score on meta; expected cpu"
    ),
    "nan": Fault(
        lambda candidates: torch.zeros(2, 5).index_fill(1, torch.tensor([3]), float("nan")),
        "returned a score that is not finite",
        deferred=True,
    ),
    "infinite": Fault(
        lambda candidates: torch.full((2, 5), -float("inf")),
        "returned a score that is not finite",
        deferred=True,
    ),
}

SELECT_FAULTS = RAISING | {
    "none": Fault(lambda candidates: None, r"returned nothing; expected integers \[2, 2\]"),
    "python-list": Fault(lambda candidates: [[0, 1], [0, 1]], r"returned a list; expected integers \[2, 2\]"),
    "listed-tensor": Fault(
        lambda candidates: [torch.tensor([[0, 1]] * 2)], "returned a list; expected integers"
    ),
    "shape": Fault(
        lambda candidates: torch.tensor([0, 1]), r"returned torch.int64 \[2\] on cpu; expected integers"
    ),
    "too-few": Fault(
        lambda candidates: torch.zeros(2, 1, dtype=torch.int64), r"returned torch.int64 \[2, 1\]"
    ),
    "too-many": Fault(lambda candidates: torch.arange(3).expand(2, 3), r"returned torch.int64 \[2, 3\]"),
    "floats": Fault(
        lambda candidates: torch.zeros(2, 2), r"returned torch.float32 \[2, 2\] on cpu; expected integers"
    ),
    "mask": Fault(
        lambda candidates: torch.ones(2, 2, dtype=torch.bool), r"returned torch.bool \[2, 2\] on cpu"
    ),
    "device": Fault(
        lambda candidates: torch.ones(2, 2, dtype=torch.int64, device="meta"),
        r"returned torch.int64 \[2, 2\] on meta",
    ),
    "duplicate": Fault(
        lambda candidates: torch.tensor([[0, 1], [3, 3]]), "returned an index twice", deferred=True
    ),
    "beyond": Fault(
        lambda candidates: torch.tensor([[0, 5], [0, 1]]),
        "returned an index out of range; indices must lie from 0 below 5",
        deferred=True,
    ),
    "negative": Fault(
        lambda candidates: torch.tensor([[0, 1], [-1, 1]]), "returned an index out of range", deferred=True
    ),
}


def assign(**tensors: Any) -> Callable[[Draft], None]:
    """An edit that assigns what a function of the draft returns."""

    def act(draft: Draft) -> None:
        for name, make in tensors.items():
            setattr(draft, name, make(draft))

    return act


def scribble(draft: Draft) -> None:
    draft.values[1, 0, 0] = float("nan")


EDIT_FAULTS = RAISING | {
    "shape": Fault(
        assign(keys=lambda draft: draft.keys[:, :1]),
        r"made the draft's keys torch.float32 \[2, 1, 2, 1, 4\] on cpu; expected torch.float32 \[2, 3, 2, 1",
    ),
    "values-shape": Fault(
        assign(values=lambda draft: draft.values[..., :2]), r"made the draft's values torch.float32"
    ),
    "dtype": Fault(assign(keys=lambda draft: draft.keys.double()), r"made the draft's keys torch.float64"),
    "half": Fault(assign(values=lambda draft: draft.values.half()), r"made the draft's values torch.float16"),
    "device": Fault(
        assign(keys=lambda draft: draft.keys.to("meta")), r"made the draft's keys .* on meta; expected"
    ),
    "none": Fault(assign(keys=lambda draft: None), "made the draft's keys nothing; expected torch.float32"),
    "number": Fault(assign(values=lambda draft: 3), "made the draft's values a int; expected torch.float32"),
    "nan": Fault(
        assign(keys=lambda draft: draft.keys * float("nan")), "made keys that are not finite", deferred=True
    ),
    "nan-in-place": Fault(scribble, "made values that are not finite", deferred=True),
    "infinite": Fault(
        assign(values=lambda draft: draft.values / 0), "made values that are not finite", deferred=True
    ),
}


class FaultyEvictor(Evictor):
    def __init__(self, fault: Fault, layer: int) -> None:
        super().__init__(name="faulty")
        self.fault, self.layer = fault, layer

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Any:
        good = Eviction(range(1, 1 + count))
        return self.fault.act(slots) if (slots.layer, slots.chunk) == (self.layer, 2) else good


class FaultyScorer(Scorer):
    def __init__(self, fault: Fault, layer: int) -> None:
        super().__init__(name="faulty")
        self.fault, self.layer = fault, layer

    @hookimpl
    def score(self, candidates: Candidates) -> Any:
        faulty = (candidates.layer, candidates.chunk) == (self.layer, 2)
        return self.fault.act(candidates) if faulty else candidates.origins.float()


class FaultySelector(Selector):
    def __init__(self, fault: Fault, layer: int) -> None:
        super().__init__(name="faulty")
        self.fault, self.layer = fault, layer

    @hookimpl
    def select(self, candidates: Candidates) -> Any:
        good = torch.arange(candidates.capacity).expand(candidates.origins.shape[0], -1)
        return self.fault.act(candidates) if (candidates.layer, candidates.chunk) == (self.layer, 2) else good


class FaultyEditor(Editor):
    def __init__(self, fault: Fault, layer: int) -> None:
        super().__init__(name="faulty")
        self.fault, self.layer = fault, layer

    @hookimpl
    def edit(self, draft: Draft) -> None:
        if (draft.layer, draft.chunk) == (self.layer, 2):
            self.fault.act(draft)


def faulty(stage: str, fault: Fault, layer: int) -> Pipeline:
    """A pipeline with a plugin that is faulty in one layer of chunk 2."""
    match stage:
        case "evict":
            return Pipeline(FaultyEvictor(fault, layer))
        case "score":
            return Pipeline(RecallWindow(), [Flat(), FaultyScorer(fault, layer)], TopM())
        case "select":
            return Pipeline(RecallWindow(), [Flat()], FaultySelector(fault, layer))
        case _:
            return Pipeline(RecallWindow(), select=TopM(), edit=[Tame(), FaultyEditor(fault, layer)])


FAULTS = [
    pytest.param(stage, fault, id=f"{stage}-{name}")
    for stage, faults in {
        "evict": EVICT_FAULTS,
        "score": SCORE_FAULTS,
        "select": SELECT_FAULTS,
        "edit": EDIT_FAULTS,
    }.items()
    for name, fault in faults.items()
]


def engine_with(stage: str, fault: Fault, layer: int, strict: bool) -> CacheEngine:
    """An engine with a faulty plugin, its cache full after two chunks."""
    engine = SIZES.engine(LAYOUT, faulty(stage, fault, layer), batch=2, strict=strict)
    run(engine, write_script(SIZES, FILLING, batch=2))
    return engine


@pytest.mark.parametrize(("stage", "fault"), FAULTS)
@pytest.mark.parametrize("layer", [0, 1])
def test_fault_is_reported_at_once_and_by_name(stage: str, fault: Fault, layer: int) -> None:
    engine = engine_with(stage, fault, layer, strict=True)
    with pytest.raises(StageError, match=fault.text) as caught:
        run(engine, write_script(SIZES, [3], batch=2))
    error = caught.value
    assert (error.plugin, error.stage, error.layer, error.chunk) == ("faulty", stage, layer, 2)
    assert str(error).startswith(f"plugin 'faulty' (stage '{stage}', layer {layer}, chunk 2): ")


@pytest.mark.parametrize(("stage", "fault"), FAULTS)
def test_deferred_fault_is_reported_a_chunk_later(stage: str, fault: Fault) -> None:
    """What can be seen without reading a tensor is reported at once even then."""
    engine = engine_with(stage, fault, 1, strict=False)
    script = write_script(SIZES, [3, 3], batch=2)
    if fault.deferred:
        run(engine, script[:1])
        script = script[1:]
    with pytest.raises(StageError, match=fault.text) as caught:
        run(engine, script[:1])
    error = caught.value
    assert (error.plugin, error.stage, error.layer, error.chunk) == ("faulty", stage, 1, 2)


@pytest.mark.parametrize(("stage", "fault"), [case for case in FAULTS if case.values[1].deferred])
def test_deferred_fault_of_the_last_chunk_is_found_when_drained(stage: str, fault: Fault) -> None:
    engine = engine_with(stage, fault, 0, strict=False)
    run(engine, write_script(SIZES, [3], batch=2))
    with pytest.raises(StageError, match=fault.text):
        engine.checks.drain()


def test_error_keeps_its_cause() -> None:
    with pytest.raises(StageError) as caught:
        run(engine_with("score", RAISING["raises"], 0, strict=True), write_script(SIZES, [3], batch=2))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_error_survives_pickling() -> None:
    """It has to cross from one process to another."""
    error = StageError("grab", "score", 3, 7, "returned nothing")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(copy) == str(error) == "plugin 'grab' (stage 'score', layer 3, chunk 7): returned nothing"
    assert (copy.plugin, copy.stage, copy.layer, copy.chunk, copy.message) == error.args


def test_error_without_a_place_names_none() -> None:
    assert str(StageError("grab", "score", None, None, "broken")) == "plugin 'grab' (stage 'score'): broken"


def test_interrupt_is_not_taken_for_a_fault() -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    engine = engine_with("score", Fault(interrupt, ""), 0, strict=True)
    with pytest.raises(KeyboardInterrupt):
        run(engine, write_script(SIZES, [3], batch=2))


# --- the pipeline's parts -----------------------------------------------------------------------------


def test_every_stage_is_asked_about_the_layout() -> None:
    class Picky(Editor):
        def check_layout(self, layout: Layout) -> None:
            raise LayoutError(f"not with a sink of {layout.sink}")

        @hookimpl
        def edit(self, draft: Draft) -> None:
            pass

    pipeline = Pipeline(RecallWindow(), select=TopM(), edit=[Picky()])
    with pytest.raises(LayoutError, match="not with a sink of 1"):
        pipeline.check_layout(LAYOUT)


def test_select_without_selector_is_refused() -> None:
    with pytest.raises(PipelineError, match="this pipeline has no selector"):
        Pipeline(SinkWindow()).select(None, torch.zeros(1, 1), {}, Checks(strict=True))  # type: ignore[arg-type]


def test_indices_come_back_in_time_order_as_int64() -> None:
    class Backwards(ScatterEvictor):
        @hookimpl
        def evict(self, slots: Slots, count: int) -> Eviction:
            return Eviction(torch.tensor([[3, 1, 2]], dtype=torch.uint8))

    pipeline = Pipeline(Backwards())
    slots = Slots(0, 0, Layout(1, 0, 3), 3, torch.arange(4)[None])
    eviction = pipeline.evict(slots, 3, Checks(strict=True))
    assert isinstance(eviction.ranks, Tensor)
    assert eviction.ranks.dtype == torch.int64
    assert eviction.ranks.tolist() == [[1, 2, 3]]


def test_options_are_strict_and_frozen() -> None:
    class Options(StageOptions):
        weight: float = 1.0

    with pytest.raises(ValueError, match="extra"):
        Options.model_validate({"wait": 2.0})
    with pytest.raises(ValueError, match="frozen"):
        Options().weight = 3.0  # type: ignore[misc]


def test_defaults_serve_where_no_options_are_given() -> None:
    stages: list[type[Stage]] = [Relevance, TemporalDiversity, TopM, Tame, RecallWindow]
    for stage in stages:
        assert stage().options == stage.Options()


def test_destination_is_the_evictors_own() -> None:
    class ToMemory(Evictor):
        destination: ClassVar[Destination] = "memory"

        @hookimpl
        def evict(self, slots: Slots, count: int) -> Eviction:
            return Eviction(range(1, 1 + count), to="memory")

    engine = SIZES.engine(LAYOUT, Pipeline(ToMemory(), select=DrawSelector()), batch=2)
    run(engine, write_script(SIZES, [*FILLING, 3, 2], batch=2))
    with pytest.raises(PipelineError, match="sends units to memory, but there is no selector"):
        Pipeline(ToMemory())


@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_must_stay_recent_is_not_evicted(as_tensor: bool) -> None:
    """Of 7 units with R = 4 and a chunk of 3, the newest is recent still: ranks 3 to 5 may go, 6 may not."""

    class Newest(Evictor):
        @hookimpl
        def evict(self, count: int) -> Eviction:
            return Eviction(torch.tensor([[4, 5, 6]]) if as_tensor else range(4, 7))

    slots = Slots(0, 5, Layout(1, 2, 4), 3, torch.arange(7)[None])
    with pytest.raises(StageError, match=r"ranks must lie from 1, past the sink, below 6"):
        Pipeline(Newest()).evict(slots, 3, Checks(strict=True))
