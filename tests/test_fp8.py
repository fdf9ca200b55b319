"""8-bit products: rounding, limits, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tetherflow.errors import KernelError
from tetherflow.fp8 import Fp8Linear, Fp8LinearGelu, gelu, quantise, require_fp8
from tetherflow.fp8_products import FP8, LARGEST, fp8_linear, fp8_linear_gelu, has_kernel


def layer(bias: bool = True, inputs: int = 64, outputs: int = 48) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)


def tokens(width: int = 64) -> Tensor:
    return torch.randn(2, 7, width, generator=torch.Generator().manual_seed(1)).bfloat16()


def rounded(x: Tensor, limit: Tensor) -> Tensor:
    return quantise(x, limit).float() * (limit / LARGEST)


def longest(x: Tensor) -> Tensor:
    return x.float().norm(dim=-1).amax()


@given(st.integers(1, 30), st.floats(-20, 20), st.floats(0, 10), st.integers(0, 2**31))
def test_within_a_limit_that_is_far_off_numbers_keep_three_bits(
    width: int, magnitude: float, farther: float, seed: int
) -> None:
    """e4m3 keeps three bits after the leading one, and steps of 2^-9 near zero, of the limit's scale."""
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)) * 2**magnitude
    limit = x.abs().amax() * 2**farther
    small = quantise(x, limit)
    assert small.dtype == FP8
    allowed = torch.maximum(x.abs() / 16, limit / LARGEST / 2**10) * 1.001
    assert bool(((small.float() * (limit / LARGEST) - x).abs() <= allowed).all())


def test_what_exceeds_the_limit_becomes_it() -> None:
    assert rounded(torch.tensor([-3.0, 0.5, 9.0]), torch.tensor(2.0)).tolist() == [-2, 0.5, 2]


def test_zeros_stay_zeros() -> None:
    assert not quantise(torch.zeros(2), torch.zeros(())).float().any()
    empty = nn.Linear(16, 16).bfloat16().requires_grad_(False)
    empty.weight.zero_()
    empty.bias.zero_()
    assert not Fp8Linear(empty)(torch.ones(2, 16).bfloat16(), torch.ones(())).any()


@pytest.mark.parametrize("bias", [True, False])
def test_product_is_that_of_the_rounded_factors(bias: bool) -> None:
    linear, x, limit = layer(bias), tokens(), torch.tensor(100.0)
    weight = rounded(linear.weight, linear.weight.abs().amax().float())
    expected = functional.linear(
        rounded(x, limit), weight, None if linear.bias is None else linear.bias.float()
    )
    found = Fp8Linear(linear)(x, limit)
    assert found.shape == (2, 7, 48)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=1e-2, rtol=1e-2)
    assert torch.equal(Fp8Linear(linear)(quantise(x, limit), limit), found)


def test_error_of_a_long_product_is_about_four_percent() -> None:
    """Though the limit is 39 times what a number usually is."""
    linear, x = layer(False, 1536, 256), tokens(1536)
    exact = functional.linear(x.double(), linear.weight.double())
    error = (Fp8Linear(linear)(x, longest(x)).double() - exact).norm() / exact.norm()
    assert 0.02 < error < 0.05


@pytest.mark.parametrize("bias", [True, False])
def test_product_with_its_gelu_is_that_of_the_rounded_factors(bias: bool) -> None:
    linear, x = layer(bias), tokens()
    small, limit = Fp8LinearGelu(linear)(x, longest(x))
    product = Fp8Linear(linear)(x, longest(x)).float()
    assert small.dtype == FP8
    assert small.shape == product.shape
    expected = functional.gelu(product, approximate="tanh")
    step = limit / LARGEST / 2**9
    assert bool(((small.float() * (limit / LARGEST) - expected).abs() <= expected.abs() / 12 + step).all())


@given(st.integers(1, 4), st.booleans(), st.floats(-8, 8), st.integers(0, 2**31))
def test_no_hidden_number_exceeds_its_limit(rows: int, bias: bool, magnitude: float, seed: int) -> None:
    linear = layer(bias, 32, 16)
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed)).bfloat16() * 2**magnitude
    _, limit = Fp8LinearGelu(linear)(x, longest(x))
    # Tokens and weights are rounded to 8 bits, which may lengthen either by a sixteenth.
    assert float(Fp8Linear(linear)(x, longest(x)).abs().amax()) <= float(limit) * 1.13
    largest = linear.weight.float().norm(dim=1).amax() * longest(x)
    offset = 0 if linear.bias is None else linear.bias.float().abs().amax()
    assert float(limit) <= float(largest) * 1.07 + float(offset)


@pytest.mark.parametrize(("scale", "row"), [(1, 1), (30, 10), (100, 10), (300, 1)])
def test_outliers_cost_other_numbers_few_bits(scale: float, row: float) -> None:
    """One channel is modulated by far more than the others, and one row of the weight is longer.

    The limit of what comes in is then far too high for most tokens, as it is known before they are.
    """
    torch.manual_seed(0)
    widen, narrow = nn.Linear(512, 1024), nn.Linear(1024, 512)
    with torch.no_grad():
        widen.weight[7] *= row
    x = functional.layer_norm(torch.randn(64, 512), (512,))
    x[:, 3] *= scale
    exact = narrow(functional.gelu(widen(x), approximate="tanh")).detach()
    limit = torch.tensor(scale * 512**0.5)
    small = Fp8Linear(narrow.bfloat16())(*Fp8LinearGelu(widen.bfloat16())(x.bfloat16(), limit))
    assert float((small.float() - exact).norm() / exact.norm()) < 0.08


def test_gelu_by_an_exponential_is_gelu() -> None:
    x = torch.linspace(-60, 60, 10_001)
    torch.testing.assert_close(gelu(x), functional.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_operator_of_one_kernel_computes_what_the_layer_does() -> None:
    """On the CPU it is written out; `tests/gpu/test_fp8.py` holds cuBLASLt's kernel to it."""
    linear, x = layer(), tokens()
    small, limit = Fp8LinearGelu(linear)(x, longest(x))
    module = Fp8LinearGelu(linear)
    rows = quantise(x.flatten(0, -2), longest(x))
    assert module.bias is not None
    found = fp8_linear_gelu(rows, module.weight, module.bias, longest(x), module.unit, LARGEST / limit)
    difference = (found.float() - small.float().flatten(0, -2)).abs()
    assert bool((difference <= small.float().flatten(0, -2).abs() / 7 + 2**-9).all())  # a step, at most
    assert not has_kernel(torch.device("cpu"), gelu=True)
    torch.library.opcheck(
        torch.ops.tetherflow.fp8_linear_gelu,
        (rows, module.weight, module.bias, longest(x), module.unit, LARGEST / limit),
        test_utils="test_faketensor",
    )


@torch.no_grad()
def test_tokens_quantised_before_must_say_how_long_they_were() -> None:
    module, x, limit = Fp8LinearGelu(layer()), tokens(), torch.tensor(100.0)
    small = quantise(x, limit)
    with pytest.raises(TypeError, match="give their squared norms"):
        module(small, limit)
    for found, expected in zip(
        module(small, limit, x.float().square().sum(dim=-1)), module(x, limit), strict=True
    ):
        assert torch.equal(found.float(), expected.float())


@torch.no_grad()
def test_operator_of_a_product_computes_what_the_layer_does() -> None:
    module, x = Fp8Linear(layer()), tokens()
    assert module.bias is not None
    rows = quantise(x.flatten(0, -2), longest(x))
    arguments = (rows, module.weight, module.bias, longest(x), module.unit)
    assert torch.equal(fp8_linear(*arguments), module(x, longest(x)).flatten(0, -2))
    torch.library.opcheck(torch.ops.tetherflow.fp8_linear, arguments, test_utils="test_faketensor")


def test_device_without_such_products_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    require_fp8(torch.device("cpu"), torch.bfloat16)

    def older_gpu(*arguments: object, **options: object) -> None:
        raise RuntimeError("torch._scaled_mm is only supported on devices with compute capability >= 8.9")

    monkeypatch.setattr(torch, "_scaled_mm", older_gpu)
    with pytest.raises(KernelError, match=r"do not run on cpu with bfloat16 .*capability >= 8.9.*precision"):
        require_fp8(torch.device("cpu"), torch.bfloat16)
