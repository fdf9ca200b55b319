"""What leaves the cache fades into two frames, one slowly, one fast (MemRoPE, arXiv 2603.12513)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tetherflow import Bank, Layout, Merger, StageOptions, hookimpl
from tetherflow.errors import LayoutError

SLOTS = 2
"""Frames of the bank: the long memory, then the short one."""
ROLLS = "rolls"
"""How often a unit of the bank has taken something in; metadata."""


class MemRope(Merger):
    """Keep a slow and a fast moving average of all that has left the cache.

    The Memory Tokens of MemRoPE (arXiv 2603.12513): with e the mean of the frames that leave together,
    long ← λ e + (1 − λ) long and short ← μ e + (1 − μ) short, keys and values alike, λ = 0.01 and μ = 0.1.
    The first e becomes both. Keys are averaged unrotated; the paper's Online RoPE Indexing is what
    block-relative positions do anyway.

    As in the published code, e is by default a single vector a head, the mean over all tokens besides, which
    then stands at every token of a frame; and the two frames that held the bank's place before the first
    eviction are lost. `pool_tokens: false` averages each token over the frames alone. `adaptive` (the code's
    `ema_adaptive`, off there, too) does so with a rate for each token t of the short memory,
    μ_t = μ (0.1 + 4.9 m_t / max m), where m_t = mean over heads of ‖e_t − short_t‖ of the keys. The code's
    query cache, which nothing reads, is left out. Averages are formed in float32 but kept in the cache's
    type: in bfloat16 steps smaller than its rounding are lost.
    """

    class Options(StageOptions):
        """Options of the merger."""

        long_rate: float = Field(default=0.01, gt=0, le=1, description="Rate λ of the long memory.")
        short_rate: float = Field(default=0.1, gt=0, le=1, description="Rate μ of the short memory.")
        pool_tokens: bool = Field(default=True, description="Whether frames are averaged over tokens, too.")
        adaptive: bool = Field(default=False, description="Whether tokens that move have a higher rate μ.")

        @model_validator(mode="after")
        def _adapts_to_tokens(self) -> MemRope.Options:
            if self.adaptive and self.pool_tokens:
                raise ValueError("'adaptive' needs tokens of their own; set 'pool_tokens' to false")
            return self

    options: Options
    metadata: ClassVar[Mapping[str, float]] = {ROLLS: 0.0}

    def check_layout(self, layout: Layout) -> None:
        """Refuse a bank of other than two frames."""
        if layout.bank != SLOTS:
            raise LayoutError(
                f"'memrope' keeps a long and a short memory, but the regions give the bank {layout.bank} "
                f"frames; make it {SLOTS}"
            )

    @hookimpl
    def merge(self, bank: Bank) -> None:
        """Move both memories towards the mean of what leaves."""
        parts = bank.layout.parts
        share = self._share(bank)
        leave = share.sum(dim=2) > 0
        keys, values = (x.float().unflatten(1, (SLOTS, parts)) for x in (bank.keys, bank.values))
        mean_key, mean_value = (self._mean(share, x) for x in (bank.leaving.keys, bank.leaving.values))
        rolls = bank.metadata[ROLLS].unflatten(1, (SLOTS, parts))
        rates = self._rates(mean_key, keys[:, 1]).masked_fill(rolls[..., None] == 0, 1)
        rates = (rates * leave[:, None, :, None])[..., None, None]
        bank.keys = keys.lerp(mean_key[:, None], rates).flatten(1, 2).to(bank.keys.dtype)
        bank.values = values.lerp(mean_value[:, None], rates).flatten(1, 2).to(bank.values.dtype)
        bank.metadata[ROLLS] = (rolls + leave[:, None]).flatten(1)

    def _share(self, bank: Bank) -> Tensor:
        """How much each unit that leaves has in the mean of each part of a frame, `[B, P, n]`."""
        parts, origins = bank.layout.parts, bank.leaving.origins
        if self.options.pool_tokens:
            share = torch.ones_like(origins)[:, None].expand(-1, parts, -1)
        else:
            part = torch.arange(parts, device=origins.device)
            share = (origins % parts)[:, None] == part[:, None]
        return share.float() / share.sum(dim=2, keepdim=True).clamp_min(1)

    def _mean(self, share: Tensor, x: Tensor) -> Tensor:
        """Mean of units `[B, n, T, H, D]` for each part of a frame, float32 `[B, P, T, H, D]`."""
        mean = torch.einsum("bpn,bnthd->bpthd", share, x.float())
        return mean.mean(dim=2, keepdim=True).expand_as(mean) if self.options.pool_tokens else mean

    def _rates(self, mean: Tensor, short: Tensor) -> Tensor:
        """How far each token moves, `[B, 2, P, T]`, given mean and short memory's keys `[B, P, T, H, D]`."""
        motion = (mean - short).norm(dim=-1).mean(dim=-1)
        rates = torch.full_like(motion, self.options.short_rate)
        if self.options.adaptive:
            most = motion.amax(dim=(1, 2), keepdim=True).clamp_min(EPS)
            rates = (rates * (SLOWEST + (FASTEST - SLOWEST) * motion / most)).clamp_max(1)
        return torch.stack([torch.full_like(motion, self.options.long_rate), rates], dim=1)


SLOWEST, FASTEST = 0.1, 5.0
"""Bounds of an adaptive rate, in parts of the short rate."""
EPS = 1e-8
"""Smallest motion that others are compared with."""
