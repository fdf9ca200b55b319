"""The drift distance against its formula, written out channel by channel, and against optimal transport."""

from __future__ import annotations

from typing import Literal

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.policies.test_tame import draft, tame
from tetherflow import Newcomers, Statistics
from tetherflow_policies.drift_distance import FARTHEST, DriftDistance, distance


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return 0.5 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def newcomers(shape: tuple[int, ...], seed: int) -> Newcomers:
    """Of `[B, n, T, H, D]` newcomers before a pool of three."""
    pool = (shape[0], 3, *shape[2:])
    return draft(
        random(shape, seed), random(shape, seed + 1), random(pool, seed + 2), random(pool, seed + 3)
    ).newcomers


def plain(own: Statistics, trusted: Statistics, row: int) -> float:
    """The mean of d_c, one channel after the other."""
    found = []
    for unit in range(own.mean.shape[1]):
        x, t = own[row, unit], trusted[row]
        for mu_x, var_x, mu_t, var_t in zip(
            *(y.flatten().double().tolist() for y in (x.mean, x.variance, t.mean, t.variance)), strict=True
        ):
            sigma_x, sigma_t = var_x**0.5, var_t**0.5
            moved = ((mu_x - mu_t) ** 2 + (sigma_x - sigma_t) ** 2) ** 0.5
            found.append(min(moved / sigma_t, FARTHEST))
    return sum(found) / len(found)


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6), st.integers(1, 2), st.just(4)),
    seed=st.integers(0, 1000),
    of=st.sampled_from(["keys", "values", "both"]),
    low=st.floats(-2, 2),
    high=st.floats(-2, 2),
)
def test_value_is_the_formula(
    shape: tuple[int, ...], seed: int, of: Literal["keys", "values", "both"], low: float, high: float
) -> None:
    shown = newcomers(shape, seed)
    schedule = DriftDistance(DriftDistance.Options(low=low, high=high, near=0.2, far=1.4, of=of))
    measured = schedule.measure(shown)
    assert measured.shape == shape[:1]
    for row in range(shape[0]):
        d = {
            "keys": plain(shown.keys, shown.trusted_keys, row),
            "values": plain(shown.values, shown.trusted_values, row),
        }
        d["both"] = (d["keys"] + d["values"]) / 2
        share = min(max((d[of] - 0.2) / 1.2, 0), 1)
        assert float(measured[row]) == pytest.approx(low + (high - low) * share, abs=1e-4)


def test_one_channels_distance_is_how_far_full_strength_moves_its_tokens() -> None:
    keys, pool = random((1, 1, 50, 1, 1), 0), random((1, 3, 50, 1, 1), 1)
    drafted = draft(keys, keys, pool, pool)
    before = drafted.newcomers
    tame(1.0).edit(drafted)
    moved = (drafted.keys - keys).square().mean().sqrt() / before.trusted_keys.variance.sqrt()
    torch.testing.assert_close(
        distance(before.keys, before.trusted_keys), moved.flatten(), atol=1e-5, rtol=1e-5
    )


def test_what_never_varies_does_not_outweigh_the_rest() -> None:
    x, pool = random((1, 1, 8, 1, 4), 0), random((1, 3, 8, 1, 4), 1)
    pool[..., 0] = 7.0
    shown = draft(x, x, pool, pool).newcomers
    assert 0 < float(distance(shown.keys, shown.trusted_keys)) <= FARTHEST


def test_the_same_statistics_are_no_distance() -> None:
    x = random((2, 1, 8, 2, 4), 0)
    shown = draft(x, x, x, x).newcomers
    assert float(distance(shown.keys, shown.trusted_keys).abs().max()) < 1e-5


def test_bounds_are_both_values() -> None:
    assert DriftDistance(DriftDistance.Options(low=0.9, high=0.2)).bounds == (0.2, 0.9)
