"""Key norms against a loop over tokens and heads."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError
from torch import Tensor

from tetherflow import Candidates, Layout
from tetherflow.pipeline import Pipeline
from tetherflow.testing import Model, candidates, run, write_script
from tetherflow_policies.grab import TopM
from tetherflow_policies.key_norm import KeyNorm
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame


def mean_norms(units: Tensor) -> list[list[float]]:
    """Mean over tokens and heads of the norm of each unit's keys `[B, n, T, H, D]`."""
    return [
        [
            sum(math.sqrt(sum(x * x for x in head)) for token in unit for head in token)
            / (len(unit) * len(unit[0]))
            for unit in row
        ]
        for row in units.tolist()
    ]


@settings(max_examples=20)
@given(shown=candidates(), weight=st.sampled_from([0.1, 1.0, 3.0]))
def test_score_is_minus_the_mean_norm(shown: Candidates, weight: float) -> None:
    score = KeyNorm(KeyNorm.Options(weight=weight)).score(shown)
    for found, norms in zip(score.tolist(), mean_norms(shown.read_keys()), strict=True):
        assert found == pytest.approx([-weight * norm for norm in norms], rel=1e-5)


@pytest.mark.parametrize("unit", ["frame", "token"])
def test_norms_that_are_kept_are_those_of_the_keys(unit: str) -> None:
    """Of edited units, of those written anew, and of those that moved, too."""
    policy = Pipeline(RecallWindow(), [KeyNorm()], TopM(), [Tame()])
    engine = Model().engine(Layout(1, 2, 4), policy, batch=2, unit=unit)  # type: ignore[arg-type]
    script = write_script(Model(), [3, 3, 2] * 4, seeds=[1, 2], switches={6: "recache", 9: "flush"})
    for chunk in script:
        run(engine, [chunk])
        for layer, store in enumerate(engine.layers):
            kept = store.take(store.book.norms, store.order)
            for found, norms in zip(
                kept.mean(dim=2).tolist(), mean_norms(engine.contents(layer)[0]), strict=True
            ):
                assert found == pytest.approx(norms, rel=1e-5)


def test_rotation_leaves_the_norms_as_they_are() -> None:
    """So the paper's score of rotated keys is that of the unrotated ones."""
    keys = torch.randn(2, 3, 4, 2, 6)
    turned = Model().rotary.turn(keys, torch.tensor([4, 9, 300]))
    torch.testing.assert_close(turned.norm(dim=-1), keys.norm(dim=-1))


def test_weight_must_be_positive() -> None:
    with pytest.raises(ValidationError, match="weight"):
        KeyNorm.Options(weight=0)
