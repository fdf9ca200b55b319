"""How a plugin's method fits its hook, and what two pipelines share."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest
import torch
from torch import Tensor

from tests.pipeline.setting import FILLING, LAYOUT, SIZES, Flat
from tetherflow import Candidates, Draft, Scorer, hookimpl
from tetherflow.errors import PipelineError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import run, write_script
from tetherflow_policies.grab import Relevance, TopM
from tetherflow_policies.recall_window import RecallWindow


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
