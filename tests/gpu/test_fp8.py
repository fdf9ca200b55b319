"""cuBLASLt's kernels of products, one with its GELU, against the same written out.

Run with `pytest -m gpu tests/gpu/test_fp8.py`; it needs `nvmath-python`.
"""

from __future__ import annotations

import pytest
import torch

from tetherflow.fp8 import Fp8Linear, Fp8LinearGelu, quantise
from tetherflow.fp8_products import LARGEST, fp8_linear_gelu, has_kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def kernel() -> None:
    pytest.importorskip("nvmath")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs 8-bit products")
    assert has_kernel(CUDA, gelu=True)


def drawn(tokens: int, inputs: int, outputs: int) -> tuple[torch.nn.Linear, torch.Tensor]:
    """A linear layer and what it is to be applied to, at random."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs, device=CUDA, dtype=torch.bfloat16).requires_grad_(False)
    linear.bias.normal_()
    return linear, torch.randn(tokens, inputs, device=CUDA, dtype=torch.bfloat16)


@pytest.mark.parametrize("shape", [(4680, 1536, 8960), (1, 64, 32), (4683, 8960, 1536)])
def test_kernel_computes_what_is_written_out(shape: tuple[int, int, int]) -> None:
    linear, x = drawn(*shape)
    longest = x.float().norm(dim=-1).amax()
    layer = Fp8LinearGelu(linear)
    assert layer.fused
    found, limit = layer(x, longest)
    assert layer.bias is not None
    arguments = (quantise(x, longest), layer.weight, layer.bias, longest, layer.unit, LARGEST / limit)
    expected = fp8_linear_gelu(*(tensor.cpu() for tensor in arguments)).float().to(CUDA)
    # Sums are added up in another order, so that some results are rounded to the neighbour.
    allowed = expected.abs() / 8 + 0.02 * expected.square().mean().sqrt()
    assert bool(((found.float() - expected).abs() <= allowed).all())
    assert float((found.float() - expected).norm() / expected.norm()) < 0.03
    layer.fused = False
    apart, _ = layer(x, longest)
    assert float((apart.float() - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("shape", [(4680, 1536, 4608), (4680, 8960, 1536), (1, 64, 32), (4683, 1536, 1536)])
def test_product_agrees_with_that_of_the_rounded_factors(shape: tuple[int, int, int]) -> None:
    linear, x = drawn(*shape)
    limit = x.float().norm(dim=-1).amax()
    layer = Fp8Linear(linear)
    assert layer.fused
    assert layer.bias is not None
    rows = quantise(x, limit).float() * limit
    expected = rows @ (layer.weight.float() * layer.unit).t() + layer.bias.float()
    assert float((layer(x, limit).float() - expected).norm() / expected.norm()) < 0.01
    layer.fused = False
    assert float((layer(x, limit).float() - expected).norm() / expected.norm()) < 0.01


def test_kernel_can_be_recorded_and_reads_its_scales_anew() -> None:
    layer = Fp8LinearGelu(torch.nn.Linear(64, 64, device=CUDA, dtype=torch.bfloat16).requires_grad_(False))
    x = torch.randn(32, 64, device=CUDA, dtype=torch.bfloat16)
    longest = x.float().norm(dim=-1).amax()
    layer(x, longest)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        small, limit = layer(x, longest)
    x.mul_(3)
    longest.mul_(3)
    graph.replay()
    again, same = layer(x, longest)
    assert torch.equal(small.float(), again.float())
    assert torch.equal(limit, same)
