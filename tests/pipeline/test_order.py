"""The order in which stages run, and what adds up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.pipeline.setting import FILLING, LAYOUT, SIZES
from tetherflow import Candidates, Draft, Editor, Revision, Scorer, Selector, Slots, hookimpl
from tetherflow.errors import PipelineError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import run, write_script
from tetherflow_policies.grab import TopM
from tetherflow_policies.recall_window import RecallWindow


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


class Rewrite(Scorer):
    """Notes a number, and writes it over the values of some of the newest units."""

    metadata: ClassVar[Mapping[str, float]] = {"noted": 0.0}

    def __init__(self, name: str, value: float, units: int) -> None:
        super().__init__(name=name)
        self.value, self.units = value, units

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return candidates.metadata["noted"]

    @hookimpl
    def revise(self, slots: Slots) -> Revision:
        ranks = range(slots.held - self.units, slots.held)
        values = torch.full_like(slots.read_values(ranks), self.value)
        noted = slots.metadata["noted"][:, ranks.start :] + self.value
        return Revision(ranks, slots.read_keys(ranks), values, {"noted": noted})


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


def test_stages_revise_in_recipe_order_what_the_pass_has_left() -> None:
    """Each adds to what was noted before the pass: where both do, the later one holds."""
    scorers = [Rewrite("one", 1.0, 2), Rewrite("two", 10.0, 1)]
    engine = SIZES.engine(LAYOUT, Pipeline(RecallWindow(), scorers, TopM()))
    run(engine, write_script(SIZES, [3, 1]))
    for layer, store in enumerate(engine.layers):
        assert store.book.metadata(store.order)["noted"].tolist() == [[0, 1, 11, 10]]
        values = engine.contents(layer)[1][0, 1:]
        assert [float(unit.mean()) for unit in values] == [1, 1, 10]


def test_only_revise_is_shared() -> None:
    class Placing(Rewrite):
        @hookimpl
        def place(self, slots: Slots) -> range:
            return range(slots.held)

    with pytest.raises(PipelineError, match="plugins 'one' and 'two' both implement 'place'; a policy has"):
        Pipeline(RecallWindow(), [Placing("one", 1.0, 1), Placing("two", 1.0, 1)], TopM())
