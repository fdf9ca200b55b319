"""Kernels in Triton, each of which reads and writes once what a compiler's kernels read and write twice.

Only where Triton is installed can this be imported.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from tetherflow.cache.rounding import STEP
from tetherflow.fp8_products import LARGEST, SMALLEST

_QUERIES: Final = 64
_KEYS: Final = 32
"""Queries of two bytes a number that a program of `attend_prompt` computes, and keys that it sees at once."""


def add_norm(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    limit: Tensor | None,
    out: Tensor,
    values: Tensor,
    squares: Tensor,
) -> None:
    """`add_norm.add_norm_fused`, a program a token.

    Args:
        x: tokens `[B, L, dim]`, one piece of memory, as `branch`, `out` and `values` are.
        branch: likewise.
        gate: `[B or 1, F or 1, 1, dim]`; F divides L, and the last dimension is one piece of memory.
        scale: likewise.
        shift: likewise.
        eps: what is added to the variance.
        limit: float32 scalar; given if `values` is in e4m3.
        out: the sum.
        values: the normalised sum.
        squares: float32 `[B, L]`, written if `limit` is given.
    """
    batch, length, dim = x.shape
    frames = max(part.shape[1] for part in (scale, shift, gate) if part is not None)
    with torch.cuda.device(x.device):
        _add_norm[(batch * length,)](
            x,
            branch,
            shift if gate is None else gate,
            scale,
            shift,
            x if limit is None else limit,
            out,
            values,
            squares,
            length // frames,
            frames,
            *_strides(shift if gate is None else gate),
            *_strides(scale),
            *_strides(shift),
            eps,
            dim=dim,
            block=triton.next_power_of_2(dim),
            gated=gate is not None,
            small=limit is not None,
            largest=LARGEST,
            smallest=SMALLEST,
            num_warps=4 * _share(dim),
        )


def _share(dim: int) -> int:
    """How many times the warps that a token of 1536 channels gets one of `dim` does."""
    return 1 if dim <= 1536 else 2


def _strides(part: Tensor) -> tuple[int, int]:
    """How far apart samples are, and frames."""
    sample, frame = (0 if part.shape[dim] == 1 else part.stride(dim) for dim in (0, 1))
    return sample, frame


def write_packed(
    packed: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    eps: float,
    phases: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    plain: Tensor | None = None,
    *,
    coarse: bool = False,
) -> None:
    """Normalise and rotate queries and keys, and write them and the values to where they go.

    Args:
        packed: queries, keys and values `[B, L, 3, H, D]`, one piece of memory.
        query_weight: what normalised queries are multiplied by, `[H * D]`.
        key_weight: likewise, of keys.
        eps: what is added to the mean square.
        phases: what to multiply each channel by and its neighbour, float32 `[L, 2, D]` or `[B, L, 2, D]`, one
            piece of memory.
        queries: where to, `[B, L, H, D]`; a sample is one piece of memory.
        keys: likewise.
        values: likewise.
        plain: likewise, of normalised keys before they are rotated; None if they go nowhere.
        coarse: whether rotated keys, and values, in bfloat16, are rounded (`tetherflow.cache.rounding`).
    """
    batch, length, _, heads, head_dim = packed.shape
    dim = heads * head_dim
    with torch.cuda.device(packed.device):
        _write_packed[(length, 3, batch)](
            packed,
            query_weight,
            key_weight,
            phases,
            queries,
            keys,
            values,
            keys if plain is None else plain,
            length,
            phases.stride(0) if phases.dim() == 4 and len(phases) > 1 else 0,
            queries.stride(0),
            keys.stride(0),
            values.stride(0),
            0 if plain is None else plain.stride(0),
            eps,
            dim=dim,
            block=triton.next_power_of_2(dim),
            head_dim=head_dim,
            stays=plain is not None,
            step=STEP if coarse and packed.dtype == torch.bfloat16 else 0,
            num_warps=2 * _share(dim),
        )


def attend_prompt(
    query: Tensor, key: Tensor, value: Tensor, weight: float, limit: Tensor | None, out: Tensor
) -> None:
    """`prompt.attend_prompt`, a program for some queries of a head.

    Args:
        query: `[B, L, H, D]`, one piece of memory, as all are; D is a power of two, 16 at least.
        key: `[B, N, H, D]`.
        value: likewise.
        weight: logarithm to base 2 of how many tokens the last key stands for.
        limit: float32 scalar; given if `out` is in e4m3.
        out: what is attended to, of the queries' shape.
    """
    batch, length, heads, head_dim = query.shape
    rows = _QUERIES if query.element_size() == 2 else _QUERIES // 2
    with torch.cuda.device(query.device):
        _attend_prompt[(triton.cdiv(length, rows), heads, batch)](
            query,
            key.contiguous(),
            value.contiguous(),
            query if limit is None else limit,
            out,
            length,
            key.shape[1],
            math.log2(math.e) / head_dim**0.5,
            weight,
            dim=heads * head_dim,
            head_dim=head_dim,
            rows=rows,
            columns=_KEYS,
            small=limit is not None,
            largest=LARGEST,
            smallest=SMALLEST,
            num_warps=4,
            num_stages=3,
        )


@triton.jit
def _add_norm(
    x_ptr,
    branch_ptr,
    gate_ptr,
    scale_ptr,
    shift_ptr,
    limit_ptr,
    out_ptr,
    values_ptr,
    squares_ptr,
    tokens,  # of a frame
    frames,  # of a sample
    gate_sample,  # strides
    gate_frame,
    scale_sample,
    scale_frame,
    shift_sample,
    shift_frame,
    eps,
    dim: tl.constexpr,
    block: tl.constexpr,
    gated: tl.constexpr,
    small: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < dim
    at = row.to(tl.int64) * dim + column
    sample, frame = row // tokens // frames, row // tokens % frames
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    branch = tl.load(branch_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if gated:
        gate_at = gate_ptr + sample * gate_sample + frame * gate_frame + column
        branch *= tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    scale_at = scale_ptr + sample * scale_sample + frame * scale_frame + column
    shift_at = shift_ptr + sample * shift_sample + frame * shift_frame + column
    scale = tl.load(scale_at, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_at, mask=inside, other=0.0).to(tl.float32)
    x += branch
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=inside)
    centred = tl.where(inside, x - tl.sum(x, 0) / dim, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 0) / dim + eps)
    values = centred / deviation * scale + shift
    if small:
        tl.store(squares_ptr + row, tl.sum(values * values, 0))
        values *= largest / tl.maximum(tl.load(limit_ptr), smallest)
        values = tl.minimum(tl.maximum(values, -largest), largest)
    tl.store(values_ptr + at, values.to(values_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _write_packed(
    packed_ptr,
    query_weight_ptr,
    key_weight_ptr,
    phases_ptr,
    queries_ptr,
    keys_ptr,
    values_ptr,
    plain_ptr,
    length,
    phases_sample,  # strides
    queries_sample,
    keys_sample,
    values_sample,
    plain_sample,
    eps,
    dim: tl.constexpr,
    block: tl.constexpr,
    head_dim: tl.constexpr,
    stays: tl.constexpr,
    step: tl.constexpr,  # to whose multiples a number's bits are rounded
):
    token, part, sample = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < dim
    packed = tl.load(
        packed_ptr + ((sample * length + token) * 3 + part) * dim + column, mask=inside, other=0.0
    )
    if part == 2:
        if step:
            packed = _rounded(packed, step)
        tl.store(values_ptr + sample * values_sample + token * dim + column, packed, mask=inside)
    else:
        weight_ptr = query_weight_ptr if part == 0 else key_weight_ptr
        out_ptr = queries_ptr + sample * queries_sample
        if part == 1:
            out_ptr = keys_ptr + sample * keys_sample
        x = packed.to(tl.float32)
        x = x / tl.sqrt(tl.sum(x * x, 0) / dim + eps)
        x *= tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
        if stays and part == 1:
            plain = x.to(plain_ptr.dtype.element_ty)
            tl.store(plain_ptr + sample * plain_sample + token * dim + column, plain, mask=inside)
        even, odd = tl.split(tl.reshape(x, (block // 2, 2)))
        neighbour = tl.reshape(tl.join(odd, even), (block,))
        phase_at = phases_ptr + sample * phases_sample + token * 2 * head_dim + column % head_dim
        turned = x * tl.load(phase_at) + neighbour * tl.load(phase_at + head_dim)
        turned = turned.to(out_ptr.dtype.element_ty)
        if step and part == 1:
            turned = _rounded(turned, step)
        tl.store(out_ptr + token * dim + column, turned, mask=inside)


@triton.jit
def _rounded(x, step: tl.constexpr):
    bits = x.to(tl.int16, bitcast=True)
    rounded = ((bits + step // 2) & -step).to(tl.bfloat16, bitcast=True)
    return tl.where((bits & 0x7F80) == 0x7F80, x, rounded)  # of what is not finite, the same


@triton.jit(do_not_specialize=["tokens", "weight"])
def _attend_prompt(
    query_ptr,
    key_ptr,
    value_ptr,
    limit_ptr,
    out_ptr,
    length,
    tokens,
    scale,  # of logits to base 2
    weight,
    dim: tl.constexpr,
    head_dim: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    small: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
):
    head, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, channel = tl.program_id(0) * rows + tl.arange(0, rows), tl.arange(0, head_dim)
    inside = (row < length)[:, None]
    at = (sample * length + row)[:, None] * dim + head * head_dim + channel[None, :]
    query = tl.load(query_ptr + at, mask=inside, other=0.0)
    most = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    attended = tl.zeros((rows, head_dim), tl.float32)
    for first in range(0, tokens, columns):
        token = first + tl.arange(0, columns)
        there = (token < tokens)[:, None]
        token_at = (sample * tokens + token)[:, None] * dim + head * head_dim + channel[None, :]
        key = tl.load(key_ptr + token_at, mask=there, other=0.0)
        value = tl.load(value_ptr + token_at, mask=there, other=0.0)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        more = tl.where(token < tokens, tl.where(token == tokens - 1, weight, 0.0), float("-inf"))
        logits += more[None, :]
        new = tl.maximum(most, tl.max(logits, 1))
        shares, kept = tl.exp2(logits - new[:, None]), tl.exp2(most - new)
        total = total * kept + tl.sum(shares, 1)
        attended = tl.dot(shares.to(value.dtype), value, attended * kept[:, None], input_precision="ieee")
        most = new
    attended /= total[:, None]
    if small:
        attended *= largest / tl.maximum(tl.load(limit_ptr), smallest)
        attended = tl.minimum(tl.maximum(attended, -largest), largest)
    tl.store(out_ptr + at, attended.to(out_ptr.dtype.element_ty), mask=inside)
