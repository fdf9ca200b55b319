"""Which stages make up a policy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cache.plugins import tethercache
from tests.pipeline.setting import Flat
from tetherflow.errors import PipelineError
from tetherflow.pipeline import Pipeline
from tetherflow_policies.grab import TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow
from tetherflow_policies.tame import Tame


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
