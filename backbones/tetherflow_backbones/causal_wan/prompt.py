"""What blocks attend to of a prompt, most of whose tokens are padding."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tetherflow.cache.attention import Attention
from tetherflow.fp8_products import FP8
from tetherflow.own_kernels import kernels, runs
from tetherflow_backbones.causal_wan.add_norm import KERNELS, Tokens


class Prompt(NamedTuple):
    """Keys and values of prompts in one layer's cross-attention.

    Attributes:
        key: `[B, N, heads, head_dim]`.
        value: likewise.
        alike: how many tokens the last of the N stands for: as many were padding.
        limit: what no value exceeds, nor what is attended to, float32 scalar; None unless the product that
            follows is in 8 bits.
    """

    key: Tensor
    value: Tensor
    alike: int = 1
    limit: Tensor | None = None


def without_padding(context: Tensor) -> tuple[Tensor, int]:
    """Text embeddings without their padding but for one token, which stands for the rest.

    Padding is zeros, which every layer makes the same of: the same key, and the same value. To attend to it
    many times is to attend to it once with many times the weight. That pays if it is half of all tokens.

    Args:
        context: text embeddings `[B, text_len, text_dim]`, padding zeroed.

    Returns:
        Those up to the longest prompt's end and one, `[B, N, text_dim]`, and how many the last stands for; or
        all of them, and 1.
    """
    filled = context.any(dim=-1).any(dim=0)
    ends = filled.nonzero()
    kept = min(len(filled), int(ends[-1]) + 2 if len(ends) else 1)
    if 2 * kept > len(filled):
        return context, 1
    return context[:, :kept], len(filled) - kept + 1


def attend_whole(query: Tensor, prompt: Prompt, attention: Attention) -> Tokens:
    """Attend to prompts, padding and all; as `attend_prompt`, but never in e4m3."""
    key, value = prompt.key, prompt.value
    if prompt.alike > 1:
        key, value = (
            torch.cat([x, x[:, -1:].expand(-1, prompt.alike - 1, -1, -1)], dim=1) for x in (key, value)
        )
    return Tokens(attention(query, key, value).flatten(2), prompt.limit)


def attend_prompt(query: Tensor, key: Tensor, value: Tensor, alike: int, limit: Tensor | None) -> Tokens:
    """Attend to prompts in one kernel, which has no gradient.

    Args:
        query: `[B, L, heads, head_dim]`.
        key: of `Prompt`, as what follows.
        value: `[B, N, heads, head_dim]`.
        alike: how many tokens the last of the N stands for.
        limit: what no value exceeds, float32 scalar.

    Returns:
        Tokens `[B, L, heads * head_dim]`, in e4m3 if there is a limit.
    """
    out = query.new_empty(query.shape, dtype=query.dtype if limit is None else FP8)
    kernels(KERNELS).attend_prompt(query.contiguous(), key, value, math.log2(alike), limit, out)
    return Tokens(out.flatten(2), limit)


def attend_prompt_runs(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, in_8_bits: bool = False
) -> bool:
    """Whether `attend_prompt` runs on a device where other kernels of our own do."""
    ones = torch.ones(1, 1, 1, head_dim, device=device, dtype=dtype)
    limit = torch.ones((), device=device) if in_8_bits else None
    return runs("attention on prompts does", lambda: attend_prompt(ones, *Prompt(ones, ones, limit=limit)))
