"""The transformer's own kernels, against the same written out.

Run with `pytest -m gpu tests/gpu/test_kernels.py`.
"""

from __future__ import annotations

import pytest
import torch

from tetherflow.cache.attention import PLAIN
from tetherflow.cache.indexing import _relocates, close_up, move, put, relocate, take
from tetherflow.cache.placing import _write_packed
from tetherflow.cache.rounding import rounded
from tetherflow.fp8 import quantise
from tetherflow.tuning import Tuning
from tetherflow_backbones.causal_wan import Architecture, WanRotary
from tetherflow_backbones.causal_wan.add_norm import add_norm, add_norm_runs
from tetherflow_backbones.causal_wan.block import LayerNorm, SelfAttention
from tetherflow_backbones.causal_wan.prompt import (
    Prompt,
    attend_prompt,
    attend_prompt_runs,
    attend_whole,
    without_padding,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("batch", "frames", "tokens", "dim"), [(1, 3, 1560, 1536), (2, 3, 7, 5120), (2, 1, 5, 24)]
)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("small", [True, False])
@torch.inference_mode()
def test_kernel_adds_and_normalises(
    dtype: torch.dtype, error: float, batch: int, frames: int, tokens: int, dim: int, gated: bool, small: bool
) -> None:
    """As step by step in float32. Modulations lie apart in memory; a norm's own scale is all frames'."""
    assert add_norm_runs(CUDA, dtype)
    torch.manual_seed(0)
    x, branch = torch.randn(2, batch, frames * tokens, dim, device=CUDA, dtype=dtype)
    shift, scale, gate = torch.randn(batch, frames, 3, 1, dim, device=CUDA, dtype=dtype).unbind(2)
    limit = torch.tensor(30.0, device=CUDA) if small else None
    own = LayerNorm(dim, 1e-6).to(CUDA, dtype)
    own.weight.normal_()
    own.bias.normal_()
    plain = LayerNorm(dim, 1e-6, elementwise_affine=False)
    by, wide = (shift, scale.contiguous()), (shift.float(), scale.float())
    for norm, modulation, widened in ((plain, by, wide), (own, None, None)):
        found, given = add_norm(x, branch, gate if gated else None, norm, modulation, limit, fused=True)
        total, expected = add_norm(
            x.float(), branch.float(), gate.float() if gated else None, norm, widened, limit, fused=False
        )
        torch.testing.assert_close(found.float(), total, atol=error, rtol=2 * error)
        values, exact = given.values.float(), expected.values
        if limit is None:
            torch.testing.assert_close(values, exact, atol=4 * error, rtol=2 * error)
            assert given.squares is None
            continue
        rounded = quantise(exact, limit).float()
        # Sums are added up in another order, so that some are rounded to the neighbour.
        torch.testing.assert_close(values, rounded, atol=2**-9, rtol=1 / 7)
        assert float((values - rounded).norm() / rounded.norm()) < 0.005
        assert given.squares is not None
        torch.testing.assert_close(given.squares, exact.square().sum(dim=-1), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("batch", "frames", "grid", "heads", "head_dim"),
    [(1, 3, (30, 52), 12, 128), (2, 3, (3, 5), 3, 128), (2, 1, (3, 5), 40, 128), (1, 2, (2, 3), 2, 24)],
)
@pytest.mark.parametrize("apart", [True, False])
@torch.inference_mode()
def test_kernel_normalises_rotates_and_writes(
    batch: int, frames: int, grid: tuple[int, int], heads: int, head_dim: int, apart: bool
) -> None:
    """Slots are a piece of each sample's buffer; samples' frames may stand apart."""
    torch.manual_seed(0)
    tokens = grid[0] * grid[1]
    rotary = WanRotary(head_dim, grid)
    rotary.tune(Tuning(compile=True))
    positions = torch.arange(batch * frames, device=CUDA).view(batch, frames) + 40
    phases = rotary.phases(positions if apart else positions[0])
    source = SelfAttention(Architecture(dim=heads * head_dim, num_heads=heads)).to(CUDA, torch.bfloat16)
    for norm in (source.norm_q, source.norm_k):
        norm.weight.uniform_(0.5, 2)
    packed = torch.randn(batch, frames * tokens, 3, heads, head_dim, device=CUDA, dtype=torch.bfloat16)
    slots = torch.zeros(3, 3, batch, frames + 4, tokens, heads, head_dim, device=CUDA, dtype=torch.bfloat16)
    expected = _write_packed(rotary, packed, source, phases, *_last(slots[0], frames), tokens)
    assert source.write(packed, rotary, phases, *_last(slots[1], frames), coarse=False) is None
    source.fused = True
    found = source.write(packed, rotary, phases, *_last(slots[1], frames), coarse=False)
    assert found is not None
    for one, other in ((found, expected), (slots[1, 0], slots[0, 0])):  # which rounds twice on the way
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.02)
        assert float((one.float() - other.float()).norm() / other.float().norm()) < 0.005
    assert torch.equal(slots[1, 1], slots[0, 1])
    torch.testing.assert_close(slots[1, 2], slots[0, 2], atol=0.01, rtol=0.01)
    *two, _ = _last(slots[2], frames)
    assert torch.equal(source.write(packed, rotary, phases, *two, None, coarse=False), found)
    assert torch.equal(slots[2, :2], slots[1, :2])
    assert not slots[2, 2].any()
    packed[0, 0, 1:, 0, 0] = torch.tensor([torch.inf, torch.nan])  # a key, a value
    source.write(packed, rotary, phases, *_last(slots[1], frames), coarse=False)
    source.write(packed, rotary, phases, *_last(slots[2], frames), coarse=True)
    plain = slots[1, 2].clone()
    slots[1, :2] = rounded(slots[1, :2], coarse=True)
    torch.testing.assert_close(slots[2, :2], slots[1, :2], atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(slots[2, 2], plain, atol=0, rtol=0, equal_nan=True)
    assert slots[2].isnan().any()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-7), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("batch", "queries", "tokens", "heads", "head_dim"),
    [
        (1, 4680, (160,), 12, 128),
        (2, 300, (3, 70), 3, 128),
        (2, 7, (64, 20), 2, 64),
        (1, 5, (0,), 2, 16),
        (1, 200, (300,), 2, 64),
    ],
)
@torch.inference_mode()
def test_kernel_attends_to_prompts(
    dtype: torch.dtype,
    error: float,
    batch: int,
    queries: int,
    tokens: tuple[int, ...],
    heads: int,
    head_dim: int,
) -> None:
    """As attention in float32 to all of the padding; prompts of a batch have lengths of their own."""
    assert attend_prompt_runs(CUDA, dtype, head_dim)
    torch.manual_seed(0)
    context = torch.randn(batch, 512, heads * head_dim, device=CUDA, dtype=dtype)
    for row, length in zip(context, tokens, strict=True):
        row[length:] = 0
    few, alike = without_padding(context)
    assert (few.shape[1], alike) == ((max(tokens) + 1, 512 - max(tokens)) if max(tokens) < 256 else (512, 1))
    weight, bias = torch.randn(2, heads * head_dim, device=CUDA, dtype=dtype)
    query = torch.randn(batch, queries, heads, head_dim, device=CUDA, dtype=dtype)
    key, value = ((few * weight + bias).unflatten(-1, (heads, -1)) for few in (few, few.flip(2)))
    limit = value.abs().amax().float()
    exact = attend_whole(query.float(), Prompt(key.float(), value.float(), alike), PLAIN).values
    found = attend_prompt(query, key, value, alike, None).values
    torch.testing.assert_close(found.float(), exact, atol=error, rtol=2 * error)
    small = attend_prompt(query, key, value, alike, limit).values
    assert small.dtype == torch.float8_e4m3fn
    difference = small.float() * limit / torch.finfo(small.dtype).max - exact
    assert float(difference.norm() / exact.norm()) < 0.04


def test_heads_that_the_kernel_does_not_compute_do_without() -> None:
    with pytest.warns(RuntimeWarning, match="does without a kernel of its own"):
        assert not attend_prompt_runs(CUDA, torch.bfloat16, 24)


def _last(buffers: torch.Tensor, frames: int) -> tuple[torch.Tensor, ...]:
    """The last frames' slots of rotated keys, of values and of plain keys."""
    return tuple(buffer[:, -frames:].flatten(1, 2) for buffer in buffers)


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "leaving"), [(1, 1560, 1536, 3), (2, 1, 24, 7), (2, 3, 4, 5), (2, 1, 2, 3)]
)
@pytest.mark.parametrize("aside", [True, False])
@pytest.mark.parametrize("lead", [0, 1])
@torch.inference_mode()
def test_kernel_relocates_units(
    batch: int, tokens: int, width: int, leaving: int, aside: bool, lead: int
) -> None:
    """As indexing does: into holes, of which some are their own source, and out of them before."""
    held, row = 2 * leaving + 1, torch.arange(batch)[:, None]
    shape = (2,) * lead + (batch, held + leaving + 1, tokens, 1, width)
    given = torch.randn(shape, dtype=torch.bfloat16)
    free = torch.stack([torch.randperm(held)[:leaving] for _ in range(batch)])
    source = close_up(free, held)
    expected, found = given.clone(), given.to(CUDA)
    if aside:
        kept = take(expected, row, free, lead=lead)
        put(expected, row, torch.arange(held + 1, held + 1 + leaving).expand(batch, -1), kept, lead=lead)
    move(expected, row, source, free, lead=lead)
    at = held + 1 if aside else None
    assert _relocates(CUDA)
    relocate(found, row.to(CUDA), source.to(CUDA), free.to(CUDA), lead=lead, aside=at)
    assert torch.equal(found.cpu(), expected)
