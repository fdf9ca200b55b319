"""Keys and values with fewer bits than bfloat16 has: a GPU takes less power to multiply them.

Attention over a full cache runs at the limit of an H100's power, so that it runs faster.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

BITS: Final = 4
"""Bits after the leading one that coarse numbers have; bfloat16 has 7, e4m3 has 3."""
STEP: Final = 1 << (7 - BITS)
"""As integers, the bits of a coarse number in bfloat16 are a multiple of it."""


def rounded(x: Tensor, *, coarse: bool) -> Tensor:
    """Bfloat16 numbers, each rounded to BITS bits if it is to be coarse; of other types, the same.

    What is not finite stays as it is. Done twice, it changes nothing more.
    """
    if not coarse or x.dtype != torch.bfloat16:
        return x
    nearest = ((x.view(torch.int16) + STEP // 2) & -STEP).view(torch.bfloat16)
    return torch.where(x.isfinite(), nearest, x)
