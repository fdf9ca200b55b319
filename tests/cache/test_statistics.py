"""Pooled statistics compose exactly."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tetherflow import Statistics
from tetherflow.cache.statistics import moments

sizes = st.tuples(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 2), st.integers(1, 4)
)


def tokens(shape: tuple[int, ...], seed: int, mean: float = 0.0) -> torch.Tensor:
    return mean + torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(shape=sizes, seed=st.integers(0, 1000), mean=st.sampled_from([0.0, 3.0, -20.0]))
def test_statistics_are_those_of_the_tokens(shape: tuple[int, ...], seed: int, mean: float) -> None:
    x = tokens(shape, seed, mean)
    found = Statistics.of(x)
    torch.testing.assert_close(found.mean.double(), x.double().mean(dim=-3), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found.variance.double(), x.double().var(dim=-3, correction=0), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("tokens_of_unit", [1, 7, 17, 36, 60])
def test_compiled_they_are_pooled_from_pieces(tokens_of_unit: int) -> None:
    x = tokens((2, 3, tokens_of_unit, 2, 4), 0) + 5 * tokens((2, 3, tokens_of_unit, 1, 1), 1)
    mean, variance = torch.compile(moments, backend="eager", dynamic=False)(x)
    torch.testing.assert_close(mean.double(), x.double().mean(dim=2), atol=1e-5, rtol=1e-5)
    wanted = x.double().var(dim=2, correction=0)
    torch.testing.assert_close(variance.double(), wanted, atol=1e-5, rtol=1e-5)


@given(shape=sizes, seed=st.integers(0, 1000))
def test_pool_of_units_is_the_pool_of_their_tokens(shape: tuple[int, ...], seed: int) -> None:
    """Statistics pooled from the units' own equal those of all tokens together."""
    units = tokens(shape, seed) + 3 * tokens((shape[0], shape[1], 1, *shape[3:]), seed + 1)
    pooled = Statistics.of(units).pooled()
    together = units.flatten(1, 2).double()
    torch.testing.assert_close(pooled.mean.double(), together.mean(dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        pooled.variance.double(), together.var(dim=1, correction=0), atol=1e-4, rtol=1e-5
    )


@given(shape=sizes, seed=st.integers(0, 1000))
def test_order_of_units_does_not_matter(shape: tuple[int, ...], seed: int) -> None:
    units = tokens(shape, seed)
    one, other = Statistics.of(units).pooled(), Statistics.of(units.flip(1)).pooled()
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.variance, other.variance, atol=1e-6, rtol=1e-5)


def test_units_that_never_vary_have_no_variance() -> None:
    found = Statistics.of(torch.full((1, 2, 4, 1, 3), 7.0)).pooled()
    assert torch.equal(found.variance, torch.zeros(1, 1, 3))
    assert torch.equal(found.mean, torch.full((1, 1, 3), 7.0))


def test_large_means_do_not_drown_the_variance() -> None:
    """A mean of 1000 beside a deviation of 1: mean of squares minus square of mean would lose it."""
    x = tokens((1, 1, 64, 1, 4), 0, 1000.0)
    torch.testing.assert_close(
        Statistics.of(x).variance.double(), x.double().var(dim=2, correction=0), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_are_float32_whatever_is_stored(dtype: torch.dtype) -> None:
    x = tokens((1, 2, 4, 1, 3), 0).to(dtype)
    found = Statistics.of(x)
    assert found.mean.dtype == found.variance.dtype == torch.float32
    torch.testing.assert_close(found.mean, x.float().mean(dim=2))


def test_input_is_left_alone() -> None:
    x = tokens((1, 2, 4, 1, 3), 0)
    before = x.clone()
    Statistics.of(x)
    assert torch.equal(x, before)
