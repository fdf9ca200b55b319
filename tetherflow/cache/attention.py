"""Attention over a cache's view."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Dense softmax attention without a mask.

    Args:
        query: `[B, Lq, H, D]`.
        key: `[B, Lk, H, D]`.
        value: `[B, Lk, H, D]`.

    Returns:
        `[B, Lq, H, D]`.
    """
    out = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return out.transpose(1, 2)
