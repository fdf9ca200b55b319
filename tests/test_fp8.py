"""8-bit products: rounding, scales, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tetherflow.errors import KernelError
from tetherflow.fp8 import (
    FP8,
    LARGEST,
    Fp8Linear,
    Fp8LinearWithin,
    quantise_rows,
    quantise_within,
    require_fp8,
)


@given(st.integers(1, 5), st.integers(1, 40), st.floats(-30, 30), st.integers(0, 2**31))
def test_rows_come_back_within_half_a_step(rows: int, width: int, magnitude: float, seed: int) -> None:
    """e4m3 keeps three bits after the leading one, and steps of 2^-9 near zero, of the row's own scale."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 2**magnitude
    quantised, scale = quantise_rows(x)
    assert quantised.dtype == FP8
    assert scale.shape == (rows, 1)
    limit = torch.maximum(x.abs() / 16, scale / 2**10) * 1.001
    assert bool(((quantised.float() * scale - x).abs() <= limit).all())
    assert float(quantised.float().abs().max()) <= LARGEST


def test_rows_of_zeros_stay_zero() -> None:
    quantised, scale = quantise_rows(torch.zeros(2, 16))
    assert not (quantised.float() * scale).any()


@pytest.mark.parametrize("bias", [True, False])
def test_product_is_that_of_the_rounded_factors(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias).bfloat16().requires_grad_(False)
    x = (10 * torch.randn(2, 7, 64)).bfloat16()
    rows, row_scale = quantise_rows(x.flatten(0, 1))
    weight, weight_scale = quantise_rows(linear.weight)
    expected = (rows.float() * row_scale) @ (weight.float() * weight_scale).t()
    if linear.bias is not None:
        expected = expected + linear.bias.float()
    found = Fp8Linear(linear)(x)
    assert found.shape == (2, 7, 48)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.flatten(0, 1).float(), expected, atol=1e-2, rtol=1e-2)


@given(st.integers(1, 30), st.floats(0, 10), st.integers(0, 2**31))
def test_within_a_limit_that_is_far_off_numbers_keep_three_bits(
    width: int, farther: float, seed: int
) -> None:
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    limit = x.abs().amax() * 2**farther
    quantised, scale = quantise_within(x, limit)
    assert quantised.dtype == FP8
    assert scale.shape == ()
    allowed = torch.maximum(x.abs() / 16, scale / 2**10) * 1.001
    assert bool(((quantised.float() * scale - x).abs() <= allowed).all())


def test_a_limit_of_few_bits_scales_as_it_is() -> None:
    weight = torch.tensor([[0.3, -0.3, 0.15]]).bfloat16()
    quantised, scale = quantise_within(weight, weight.abs().amax())
    assert float(quantised.float().amax()) == LARGEST
    assert float(scale) == pytest.approx(float(weight[0, 0]) / LARGEST)
    nothing, _ = quantise_within(torch.zeros(2), torch.zeros(()))
    assert not nothing.float().any()


@given(st.integers(1, 4), st.booleans(), st.floats(-8, 8), st.integers(0, 2**31))
def test_no_output_exceeds_the_limit(rows: int, bias: bool, magnitude: float, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(32, 16, bias=bias).requires_grad_(False)
    x = torch.randn(rows, 32).bfloat16() * 2**magnitude
    layer = Fp8Linear(linear.bfloat16())
    assert float(layer(x).abs().amax()) <= float(layer.limit(x)) * 1.01


@pytest.mark.parametrize("bias", [True, False])
def test_product_within_a_limit_is_that_of_the_rounded_factors(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias).bfloat16().requires_grad_(False)
    x = torch.randn(2, 7, 64).bfloat16()
    small, scale = quantise_within(x.flatten(0, 1), torch.tensor(100.0))
    weight, weight_scale = quantise_within(linear.weight, linear.weight.abs().amax())
    expected = (small.float() * scale) @ (weight.float() * weight_scale).t()
    if linear.bias is not None:
        expected = expected + linear.bias.float()
    found = Fp8LinearWithin(linear)(x, torch.tensor(100.0))
    assert found.shape == (2, 7, 48)
    torch.testing.assert_close(found.flatten(0, 1).float(), expected, atol=1e-2, rtol=1e-2)
    exact = x.double() @ linear.weight.double().t() + (0 if linear.bias is None else linear.bias.double())
    assert float((found - exact).norm() / exact.norm()) < 0.06


def test_error_of_a_long_product_is_about_four_percent() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(1536, 256, bias=False).bfloat16().requires_grad_(False)
    x = torch.randn(64, 1536).bfloat16()
    exact = x.double() @ linear.weight.double().t()
    error = (Fp8Linear(linear)(x).double() - exact).norm() / exact.norm()
    assert 0.02 < error < 0.05


def test_device_without_such_products_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    require_fp8(torch.device("cpu"), torch.bfloat16)

    def older_gpu(*arguments: object, **options: object) -> None:
        raise RuntimeError("torch._scaled_mm is only supported on devices with compute capability >= 8.9")

    monkeypatch.setattr(torch, "_scaled_mm", older_gpu)
    with pytest.raises(KernelError, match=r"do not run on cpu with bfloat16 .*capability >= 8.9.*precision"):
        require_fp8(torch.device("cpu"), torch.bfloat16)
