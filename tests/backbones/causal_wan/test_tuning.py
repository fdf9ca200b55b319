"""Compiled glue, compiled rotation and 8-bit products: what they change, and that they compile but once."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.backbones.causal_wan.models import SMALL, transformer
from tests.backbones.causal_wan.test_transformer import flow, noise
from tetherflow.cache import Attention
from tetherflow.cache.attention import PLAIN
from tetherflow.errors import KernelError
from tetherflow.fp8 import Fp8Linear, Fp8LinearGelu
from tetherflow.tuning import Tuning
from tetherflow_backbones.causal_wan import WanRotary
from tetherflow_backbones.causal_wan.add_norm import Tokens

FOUR = attrs.evolve(SMALL, num_layers=4)
EIGHTS = attrs.evolve(SMALL, dim=64, ffn_dim=96, num_heads=2)


def inputs(frames: int = 3, batch: int = 1) -> tuple[Tensor, Tensor]:
    return noise((batch, frames, 3, 4, 4)), noise((batch, 4, 12), 1)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_compiled_glue_computes_the_same_from_four_graphs(backend: str) -> None:
    """Four for all blocks and passes: were a graph broken by what does not compile, there would be more."""
    counter = CompileCounterWithBackend(backend)
    model = transformer(FOUR)
    model.fuse()
    plain = flow(model, *inputs())
    model.tune(Tuning(compile=True, chunk_frames=3), backend=counter)
    for _ in range(2):
        torch.testing.assert_close(flow(model, *inputs()), plain, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 4


@torch.inference_mode()
def test_chunk_of_another_length_is_not_compiled_for() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = transformer()
    plain = flow(model, *inputs(2))
    model.tune(Tuning(compile=True, chunk_frames=3), backend=counter)
    assert torch.equal(flow(model, *inputs(2)), plain)
    assert counter.frame_count == 0
    model.tune(Tuning())
    flow(model, *inputs(3))
    assert counter.frame_count == 0


@torch.inference_mode()
def test_no_attention_is_in_a_graph() -> None:
    """Neither that on the cache nor that on the prompt, which is computed by the kernel given."""
    calls: list[tuple[int, int]] = []

    def counted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert not torch.compiler.is_compiling()
        calls.append((query.shape[1], key.shape[1]))
        return PLAIN(query, key, value)

    model = transformer(FOUR)
    model.tune(Tuning(Attention("plain", counted), compile=True), backend="aot_eager")
    flow(model, *inputs())
    assert calls == [(12, 4)] * 4


@torch.inference_mode()
def test_rotation_in_real_numbers_turns_by_the_same_angles() -> None:
    plain, tuned = (WanRotary(24, (2, 3)) for _ in range(2))
    tuned.tune(Tuning(compile=True))
    for frames, start in ((3, 0), (18, 3), (3, 5000)):
        positions = torch.arange(start, start + frames)
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
            x = noise((1, frames, 6, 2, 24)).to(dtype)
            found, expected = tuned.rotate(x, positions), plain.rotate(x, positions)
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert not tuned.phases(positions).is_complex()


@torch.inference_mode()
def test_attention_has_no_kernel_for_other_rotations() -> None:
    """Then nothing is written, and the engine does it step by step."""

    class Still:
        def phases(self, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
            return positions.float()

        def turn(self, x: Tensor, phases: Tensor) -> Tensor:
            return x

    source = transformer().blocks[0].self_attn
    source.fused = True
    packed, slots = noise((1, 12, 3, 2, 12)), torch.zeros(1, 12, 2, 12)
    complexes, exact = (WanRotary(12, (2, 2), dtype) for dtype in (torch.float32, torch.float64))
    for rotary in (complexes, exact, Still()):
        phases = rotary.phases(torch.arange(3))
        assert source.write(packed, rotary, phases, slots, slots, None, coarse=False) is None
    assert not slots.any()


def test_parity_rotates_as_the_reference() -> None:
    rotary = WanRotary(24, (2, 3), torch.float64)
    rotary.tune(Tuning(compile=True))
    assert rotary.phases(torch.arange(2)).dtype == torch.complex128


@torch.inference_mode()
def test_fp8_products_round_a_few_percent() -> None:
    """Of the flow's deviation; the same products in bf16 round less than one."""
    model = transformer(EIGHTS).bfloat16()
    model.fuse()
    latents, context = (x.bfloat16() for x in inputs(batch=2))
    exact = flow(transformer(EIGHTS), latents.float(), context.float())
    before = sum(p.numel() for block in model.blocks for p in block.parameters())

    def error() -> float:
        return float((flow(model, latents, context).float() - exact).norm() / exact.norm())

    assert error() < 0.02
    model.tune(Tuning(products="fp8"))
    assert 0.005 < error() < 0.1
    small = [module for module in model.modules() if isinstance(module, Fp8Linear | Fp8LinearGelu)]
    assert len(small) == 4 * EIGHTS.num_layers
    after = sum(p.numel() for block in model.blocks for p in block.parameters())
    weights = sum(module.in_features * module.out_features for module in small)
    assert before - after == weights + sum(module.out_features for module in small)
    model.tune(Tuning(products="fp8", compile=True), backend="aot_eager")
    assert 0.005 < error() < 0.1
    for block in model.blocks:
        longest = float(block.norm3(noise((50, 64)).bfloat16()).float().norm(dim=-1).amax())
        assert longest <= 1.01 * float(block.longest) < 4 * longest


@torch.inference_mode()
def test_fp8_products_of_another_chunk_and_of_projections_that_are_not_fused() -> None:
    latents, context = (x.bfloat16() for x in inputs(2, batch=2))
    exact = flow(transformer(EIGHTS), latents.float(), context.float())
    for fuses in (True, False):
        model = transformer(EIGHTS).bfloat16()
        if fuses:
            model.fuse()
        model.tune(Tuning(products="fp8", compile=True, chunk_frames=3), backend="aot_eager")
        error = (flow(model, latents, context).float() - exact).norm() / exact.norm()
        assert 0.005 < float(error) < 0.1


def test_fp8_network_must_know_how_long_tokens_can_be() -> None:
    block = transformer(EIGHTS).bfloat16().blocks[0]
    block.quantise()
    with pytest.raises(TypeError, match="must know how long tokens can be"):
        block.ffn(Tokens(noise((1, 4, 64)).bfloat16()))


def test_fp8_is_refused_where_widths_do_not_suit() -> None:
    fused = transformer().bfloat16()
    fused.fuse()
    with pytest.raises(KernelError, match=r"a matrix of 24x24 does not suit fp8.*multiples of 16"):
        fused.tune(Tuning(products="fp8"))
