"""Kernels in Triton: units are copied once, where torch's indexing copies them twice.

Only where Triton is installed can this be imported.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEAST: Final = 128
_BLOCK: Final = 2048
"""Words of 8 bytes that a program has room for, at least and at most."""


def relocate(buffer: Tensor, source: Tensor, target: Tensor, aside: int | None) -> None:
    """`indexing.relocate`, a program for a piece of a unit.

    Args:
        buffer: int64 `[A, B, slots, words]`; a unit is one piece of memory.
        source: slots to read, int64 `[B, n]`.
        target: slots to write, likewise.
        aside: slot to which what is in the first of `target` goes before, the others following; None if it is
            lost.
    """
    lead, batch, _, words = buffer.shape
    count = source.shape[1]
    with torch.cuda.device(buffer.device):
        block = min(_BLOCK, max(_LEAST, triton.next_power_of_2(words)))
        _relocate[(count, triton.cdiv(words, block), lead * batch)](  # only the first may exceed 65535
            buffer,
            source.contiguous(),
            target.contiguous(),
            0 if aside is None else aside,
            batch,
            count,
            words,
            buffer.stride(0),
            buffer.stride(1),
            buffer.stride(2),
            keeps=aside is not None,
            block=block,
            num_warps=4,
        )


@triton.jit(do_not_specialize=["aside", "batch", "count"])
def _relocate(
    buffer_ptr,
    source_ptr,
    target_ptr,
    aside,
    batch,
    count,
    words,
    lead_stride,
    sample_stride,
    slot_stride,
    keeps: tl.constexpr,
    block: tl.constexpr,
):
    unit, row = tl.program_id(0), tl.program_id(2)
    lead, sample = (row // batch).to(tl.int64), (row % batch).to(tl.int64)
    word = tl.program_id(1) * block + tl.arange(0, block)
    inside = word < words
    source = tl.load(source_ptr + sample * count + unit)
    target = tl.load(target_ptr + sample * count + unit)
    base = buffer_ptr + lead * lead_stride + sample * sample_stride + word
    if keeps:
        kept = tl.load(base + target * slot_stride, mask=inside)
        tl.store(base + (aside + unit).to(tl.int64) * slot_stride, kept, mask=inside)
    if source != target:
        moved = tl.load(base + source * slot_stride, mask=inside)
        tl.store(base + target * slot_stride, moved, mask=inside)
