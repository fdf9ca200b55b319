"""TAME against the published function's recorded result, and against the formula over the tokens."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from tests.cache import oracle as naive
from tests.golden_traces import GOLDEN
from tetherflow import Draft, Statistics
from tetherflow_policies.tame import Tame

UNITS = load_file(GOLDEN / "units.safetensors")
SETTINGS = json.loads((GOLDEN / "golden.json").read_text())["units"]


def draft(keys: Tensor, values: Tensor, trusted_keys: Tensor, trusted_values: Tensor) -> Draft:
    """A draft of newcomers `[B, n, T, H, D]` before a trusted pool of units of that shape."""
    return Draft(
        layer=0,
        chunk=0,
        origins=torch.arange(keys.shape[1]).expand(keys.shape[0], -1),
        admitted=torch.ones(keys.shape[:2], dtype=torch.bool),
        keys=keys.clone(),
        values=values.clone(),
        key_statistics=Statistics.of(keys),
        value_statistics=Statistics.of(values),
        trusted_keys=Statistics.of(trusted_keys).pooled(),
        trusted_values=Statistics.of(trusted_values).pooled(),
        trusted_units=trusted_keys.shape[1],
    )


def tame(tau: float) -> Tame:
    return Tame(Tame.Options(tau=tau))


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return 0.5 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_edit_is_the_published_one() -> None:
    tokens = SETTINGS["tokens_per_frame"]
    x, trusted = (UNITS[name].unflatten(1, (-1, tokens)) for name in ("x", "trusted"))
    drafted = draft(x, x, trusted, trusted)
    tame(SETTINGS["tau"]).edit(drafted)
    for edited in (drafted.keys, drafted.values):
        torch.testing.assert_close(edited[:, 0], UNITS["edited_tau_0_6"], atol=2e-6, rtol=1e-5)


shapes = st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 2), st.sampled_from([2, 4]))


@settings(max_examples=40)
@given(
    shape=shapes,
    batch=st.integers(1, 2),
    pool=st.integers(1, 4),
    tau=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
)
def test_edit_is_the_formula_over_the_tokens(
    shape: tuple[int, int, int, int], batch: int, pool: int, tau: float, seed: int
) -> None:
    keys, values = random((batch, *shape), seed), random((batch, *shape), seed + 1)
    trusted_keys, trusted_values = (random((batch, pool, *shape[1:]), seed + i) for i in (2, 3))
    drafted = draft(keys, values, trusted_keys, trusted_values)
    tame(tau).edit(drafted)
    for before, after, trusted in (
        (keys, drafted.keys, trusted_keys),
        (values, drafted.values, trusted_values),
    ):
        for row in range(batch):
            for unit in range(shape[0]):
                x = before[row, unit].double()
                wanted = naive.restyle(x, list(trusted[row].double()), tau)
                scale = 1 + 1 / x.std(dim=0, correction=0).clamp_min(1e-6)  # rounding grows as x is stretched
                assert bool(((after[row, unit] - wanted).abs() <= 2e-5 * scale).all())


def test_tau_zero_is_no_edit() -> None:
    keys, trusted = random((1, 2, 3, 1, 4), 0), random((1, 2, 3, 1, 4), 1)
    drafted = draft(keys, keys, trusted, trusted)
    tame(0).edit(drafted)
    assert torch.equal(drafted.keys, keys)
    assert torch.equal(drafted.values, keys)


def test_empty_trusted_pool_is_no_edit() -> None:
    keys = random((1, 2, 3, 1, 4), 0)
    drafted = draft(keys, keys, keys, keys)
    drafted.trusted_units = 0
    tame(0.6).edit(drafted)
    assert torch.equal(drafted.keys, keys)


@given(shape=shapes, seed=st.integers(0, 1000))
def test_what_already_has_the_trusted_statistics_stays(shape: tuple[int, int, int, int], seed: int) -> None:
    """A single newcomer before a pool of nothing but itself is left as it is, up to rounding."""
    x = random((1, 1, *shape[1:]), seed)
    drafted = draft(x, x, x, x)
    tame(0.6).edit(drafted)
    torch.testing.assert_close(drafted.keys, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0, 300.0])
@pytest.mark.parametrize("tokens", [1, 8])
def test_channel_that_never_varies_takes_the_trusted_mean(mean: float, tokens: int) -> None:
    """σ_x = 0 must not turn rounding into values: what is left is (1 − τ) μ_x + τ μ_t."""
    x = torch.full((1, 1, tokens, 1, 4), mean)
    trusted = random((1, 3, 8, 1, 4), 0)
    drafted = draft(x, x, trusted, trusted)
    tame(0.6).edit(drafted)
    wanted = 0.4 * mean + 0.6 * trusted.mean(dim=(1, 2))
    torch.testing.assert_close(drafted.keys, wanted[:, None, None].expand_as(x), atol=1e-5, rtol=1e-5)


def test_large_means_do_not_cost_precision() -> None:
    """A mean of 100 beside a deviation of 0.01."""
    x = 100 + 0.01 * random((1, 1, 16, 1, 4), 0)
    trusted = random((1, 3, 16, 1, 4), 1)
    drafted = draft(x, x, trusted, trusted)
    tame(1.0).edit(drafted)
    wanted = naive.restyle(x[0, 0].double(), list(trusted[0].double()), 1.0)
    torch.testing.assert_close(drafted.keys[0, 0].double(), wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_edited_in_float32(dtype: torch.dtype) -> None:
    x, trusted = (random((1, 2, 8, 1, 4), seed).to(dtype) for seed in (0, 1))
    drafted = draft(x, x, trusted, trusted)
    tame(0.6).edit(drafted)
    assert drafted.keys.dtype == dtype
    wanted = naive.restyle(x[0, 1].double(), list(trusted[0].double()), 0.6)
    torch.testing.assert_close(drafted.keys[0, 1].double(), wanted, atol=0.03, rtol=0.01)


def test_keys_and_values_are_edited_apart() -> None:
    keys, values = random((1, 1, 4, 1, 2), 0), random((1, 1, 4, 1, 2), 1)
    pools = random((1, 2, 4, 1, 2), 2), 5 + random((1, 2, 4, 1, 2), 3)
    drafted = draft(keys, values, *pools)
    tame(1.0).edit(drafted)
    torch.testing.assert_close(
        drafted.keys.mean(dim=2)[:, 0], pools[0].mean(dim=(1, 2)), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        drafted.values.mean(dim=2)[:, 0], pools[1].mean(dim=(1, 2)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("tau", [-0.1, 1.1])
def test_tau_must_lie_between_nothing_and_all(tau: float) -> None:
    with pytest.raises(ValidationError, match="tau"):
        Tame.Options(tau=tau)


def test_default_is_the_papers() -> None:
    assert Tame().options.tau == 0.6
