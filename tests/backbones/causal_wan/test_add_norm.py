"""Adding a branch and normalising in one operator: what it computes, with and without a kernel for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tetherflow_backbones.causal_wan.add_norm import add_norm, add_norm_fused, kernels_run
from tetherflow_backbones.causal_wan.block import LayerNorm
from tetherflow_backbones.causal_wan.modulation import Modulation


def parts(batch: int, frames: int, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Modulation]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shift, scale, gate = noise(batch, frames, 3, 1, dim).unbind(2)
    return noise(batch, frames * 5, dim), noise(batch, frames * 5, dim), Modulation(shift, scale, gate, None)


@given(batch=st.integers(1, 2), frames=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_operator_computes_what_is_computed_step_by_step(batch: int, frames: int, seed: int) -> None:
    x, branch, by = parts(batch, frames, seed=seed)
    own = LayerNorm(8, 1e-6).requires_grad_(False)
    own.weight.uniform_(-2, 2)
    own.bias.uniform_(-2, 2)
    plain = LayerNorm(8, 1e-6, elementwise_affine=False)
    for norm, modulation in ((own, None), (plain, by)):
        for gate in (by.gate, None):
            found, expected = (
                add_norm(x, branch, gate, norm, modulation, None, fused=fused) for fused in (True, False)
            )
            torch.testing.assert_close(found[0], expected[0])
            torch.testing.assert_close(found[1].values, expected[1].values, atol=1e-5, rtol=1e-5)
            assert found[1][1:] == expected[1][1:] == (None, None)


def test_for_a_layer_in_8_bits_tokens_are_quantised_and_measured() -> None:
    x, branch, by = parts(2, 3)
    limit, norm = torch.tensor(40.0), LayerNorm(8, 1e-6, elementwise_affine=False)
    exact = add_norm(x, branch, by.gate, norm, by, limit, fused=False)[1].values
    tokens = add_norm(x, branch, by.gate, norm, by, limit, fused=True)[1]
    assert tokens.values.dtype == torch.float8_e4m3fn
    assert tokens.limit is limit
    found = tokens.values.float() * (limit / 448)
    assert bool(((found - exact).abs() <= exact.abs() / 15 + limit / 448 / 2**9).all())
    torch.testing.assert_close(tokens.squares, exact.square().sum(dim=-1))


@pytest.mark.parametrize("limit", [None, torch.tensor(40.0)])
def test_operator_compiles(limit: Tensor | None) -> None:
    x, branch, by = parts(2, 3)
    given_ = (x, branch, by.gate, by.scale, by.shift, 1e-6, limit)
    torch.library.opcheck(
        torch.ops.tetherflow.add_norm, given_, test_utils=("test_schema", "test_faketensor")
    )
    assert [part.shape for part in add_norm_fused(*given_)[:2]] == [x.shape, x.shape]


def test_no_cpu_has_a_kernel_for_it() -> None:
    assert not kernels_run(torch.device("cpu"), torch.float32)
