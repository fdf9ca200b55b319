"""What a pipeline makes of its stages' answers and options."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.cache.plugins import DrawSelector, ScatterEvictor
from tests.pipeline.setting import FILLING, LAYOUT, SIZES
from tetherflow import (
    Destination,
    Draft,
    Editor,
    Eviction,
    Evictor,
    Layout,
    Slots,
    Stage,
    StageOptions,
    hookimpl,
)
from tetherflow.cache.checks import Checks
from tetherflow.errors import LayoutError, PipelineError, StageError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import run, write_script
from tetherflow_policies.grab import Relevance, TemporalDiversity, TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow
from tetherflow_policies.tame import Tame


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
    run(engine, write_script(SIZES, [*FILLING, 3, 2], seeds=[0, 1]))
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
