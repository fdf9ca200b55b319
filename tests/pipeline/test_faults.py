"""A plugin's fault is an error that names the plugin, the stage, the layer and the chunk.

What only the tensors' contents show is reported at once in strict mode, a chunk late in deferred mode.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from tests.pipeline.faults import EDIT_FAULTS, EVICT_FAULTS, RAISING, SCORE_FAULTS, SELECT_FAULTS, Fault
from tests.pipeline.setting import FILLING, LAYOUT, SIZES, Flat
from tetherflow import Candidates, Draft, Editor, Eviction, Evictor, Scorer, Selector, Slots, hookimpl
from tetherflow.cache import CacheEngine
from tetherflow.errors import StageError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import run, write_script
from tetherflow_policies.grab import TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame


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
    run(engine, write_script(SIZES, FILLING, seeds=[0, 1]))
    return engine


@pytest.mark.parametrize(("stage", "fault"), FAULTS)
@pytest.mark.parametrize("layer", [0, 1])
def test_fault_is_reported_at_once_and_by_name(stage: str, fault: Fault, layer: int) -> None:
    engine = engine_with(stage, fault, layer, strict=True)
    with pytest.raises(StageError, match=fault.text) as caught:
        run(engine, write_script(SIZES, [3], seeds=[0, 1]))
    error = caught.value
    assert (error.plugin, error.stage, error.layer, error.chunk) == ("faulty", stage, layer, 2)
    assert str(error).startswith(f"plugin 'faulty' (stage '{stage}', layer {layer}, chunk 2): ")


@pytest.mark.parametrize(("stage", "fault"), FAULTS)
def test_deferred_fault_is_reported_a_chunk_later(stage: str, fault: Fault) -> None:
    """What can be seen without reading a tensor is reported at once even then."""
    engine = engine_with(stage, fault, 1, strict=False)
    script = write_script(SIZES, [3, 3], seeds=[0, 1])
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
    run(engine, write_script(SIZES, [3], seeds=[0, 1]))
    with pytest.raises(StageError, match=fault.text):
        engine.checks.drain()


def test_error_keeps_its_cause() -> None:
    with pytest.raises(StageError) as caught:
        run(engine_with("score", RAISING["raises"], 0, strict=True), write_script(SIZES, [3], seeds=[0, 1]))
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
        run(engine, write_script(SIZES, [3], seeds=[0, 1]))
