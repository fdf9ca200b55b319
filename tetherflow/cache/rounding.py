"""Keys and values with fewer bits than bfloat16 has: a GPU takes less power to multiply them.

Attention over a full cache runs at the limit of an H100's power, so that it runs faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]
"""What is done to keys and values before attention reads them; done twice, it changes nothing more."""

BITS: Final = 4
"""Bits after the leading one that `coarse` leaves; bfloat16 has 7, e4m3 has 3."""
_STEP: Final = 1 << (7 - BITS)


def exact(x: Tensor) -> Tensor:
    """The same numbers."""
    return x


def coarse(x: Tensor) -> Tensor:
    """Bfloat16 numbers, each rounded to BITS bits after the leading one; of other types, the same."""
    if x.dtype != torch.bfloat16:
        return x
    rounded = ((x.view(torch.int16) + _STEP // 2) & -_STEP).view(torch.bfloat16)
    return torch.where(x.isfinite(), rounded, x)
