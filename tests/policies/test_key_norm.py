"""Key norms against a loop over tokens and heads."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from pydantic import ValidationError
from torch import Tensor

from tetherflow import Candidates
from tetherflow.testing import Model
from tetherflow_policies.key_norm import KeyNorm


def candidates(keys: Tensor) -> Candidates:
    """Candidates with keys `[B, N, T, H, D]`."""
    return Candidates(
        layer=0,
        chunk=0,
        capacity=1,
        residents=1,
        origins=torch.arange(keys.shape[1]).expand(keys.shape[0], -1),
        mean_keys=keys.mean(dim=2),
        read_keys=lambda: keys,
        read_values=lambda: keys,
    )


@given(
    shape=st.tuples(*[st.integers(1, 3)] * 4, st.sampled_from([2, 6])),
    weight=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_score_is_minus_the_mean_norm(
    shape: tuple[int, int, int, int, int], weight: float, seed: int
) -> None:
    keys = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    score = KeyNorm(KeyNorm.Options(weight=weight)).score(candidates(keys))
    for row, units in enumerate(keys.tolist()):
        wanted = []
        for unit in units:
            norms = [math.sqrt(sum(x * x for x in head)) for token in unit for head in token]
            wanted.append(-weight * sum(norms) / len(norms))
        assert score[row].tolist() == pytest.approx(wanted, rel=1e-5)


def test_rotation_leaves_the_score_as_it_is() -> None:
    """So the paper's score of rotated keys is that of the unrotated ones."""
    keys = torch.randn(2, 3, 4, 2, 6)
    turned = Model().rotary.turn(keys, torch.tensor([4, 9, 300]))
    torch.testing.assert_close(KeyNorm().score(candidates(keys)), KeyNorm().score(candidates(turned)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    keys = (1000 * torch.randn(1, 3, 4, 2, 6)).to(dtype)
    score = KeyNorm().score(candidates(keys))
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, KeyNorm().score(candidates(keys.float())))


def test_weight_must_be_positive() -> None:
    with pytest.raises(ValidationError, match="weight"):
        KeyNorm.Options(weight=0)
