"""Adding a branch and normalising, step by step; `tests/gpu/test_kernels.py` has the kernel."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tetherflow_backbones.causal_wan.add_norm import add_norm, add_norm_runs
from tetherflow_backbones.causal_wan.block import LayerNorm
from tetherflow_backbones.causal_wan.modulation import Modulation


def parts(batch: int, frames: int, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Modulation]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shift, scale, gate = noise(batch, frames, 3, 1, dim).unbind(2)
    return noise(batch, frames * 5, dim), noise(batch, frames * 5, dim), Modulation(shift, scale, gate, None)


@given(batch=st.integers(1, 2), frames=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_a_branch_is_gated_and_what_is_normalised_is_modulated_by_frame(
    batch: int, frames: int, seed: int
) -> None:
    x, branch, by = parts(batch, frames, seed=seed)
    norm = LayerNorm(8, 1e-6, elementwise_affine=False)
    total, tokens = add_norm(x, branch, by.gate, norm, by[:2], None, fused=False)
    for sample in range(batch):
        for token in range(frames * 5):
            shift, scale, gate = (part[sample, token // 5, 0] for part in by[:3])
            own = x[sample, token] + branch[sample, token] * gate
            torch.testing.assert_close(total[sample, token], own)
            normal = (own - own.mean()) / (own.var(correction=0) + 1e-6).sqrt()
            torch.testing.assert_close(
                tokens.values[sample, token], normal * scale + shift, atol=1e-5, rtol=1e-4
            )
    assert tokens[1:] == (None, None)


def test_a_norm_has_its_own_scale_where_nothing_modulates() -> None:
    x, branch, _ = parts(2, 3)
    norm = LayerNorm(8, 1e-6).requires_grad_(False)
    norm.weight.uniform_(-2, 2)
    norm.bias.uniform_(-2, 2)
    limit = torch.tensor(9.0)
    total, tokens = add_norm(x, branch, None, norm, None, limit, fused=False)
    assert torch.equal(total, x + branch)
    expected = functional.layer_norm(x + branch, (8,), norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(tokens.values, expected)
    assert tokens.limit is limit


def test_operator_says_what_it_gives_before_it_is_computed() -> None:
    x = torch.empty(2, 15, 8, device="meta", dtype=torch.bfloat16)
    part, limit = torch.empty(2, 3, 1, 8, device="meta"), torch.empty((), device="meta")
    for given_, dtype, squares in ((limit, torch.float8_e4m3fn, (2, 15)), (None, torch.bfloat16, (0,))):
        found = torch.ops.tetherflow.add_norm(x, x, part, part, part, 1e-6, given_)
        assert [tensor.shape for tensor in found] == [x.shape, x.shape, squares]
        assert [tensor.dtype for tensor in found] == [torch.bfloat16, dtype, torch.float32]


def test_no_cpu_has_kernels_for_it() -> None:
    assert not add_norm_runs(torch.device("cpu"), torch.float32)
