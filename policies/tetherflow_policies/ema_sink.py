"""EMA-sink: what leaves a window lives on in a moving average."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from tetherflow import Bank, Merger, StageOptions, hookimpl


class EmaSink(Merger):
    """Let each unit of the bank follow what leaves the cache, as an exponential moving average.

    EMA-Sink (Reward Forcing, arXiv 2512.04678): x ← decay · x + (1 − decay) · e, keys and values alike, token
    by token. As many units as the bank has are aligned with it, the oldest with the oldest. Of any other
    number, e is the mean over those that are the same part of a frame; the published code overwrites the bank
    then, which would forget what it is there to keep, and is left out.
    """

    class Options(StageOptions):
        """Options of the merger."""

        decay: float = Field(default=0.999, ge=0, le=1, description="Share of the bank that stays.")

    options: Options

    @hookimpl
    def merge(self, bank: Bank) -> None:
        """Move the bank's keys and values towards those that leave."""
        leaving, decay = bank.leaving, self.options.decay
        share = _shares(bank)  # [B, b, n]; all 0 where nothing that leaves is of a unit's part
        rate = (1 - decay) * share
        rest = 1 - rate.sum(dim=2)
        bank.keys = _average(bank.keys, leaving.keys, rest, rate)
        bank.values = _average(bank.values, leaving.values, rest, rate)


def _shares(bank: Bank) -> Tensor:
    """How much of e is each unit that leaves, for each unit of the bank, float32 `[B, b, n]`."""
    (batch, units), leaving = bank.origins.shape, bank.leaving.origins.shape[1]
    if units == leaving:
        return torch.eye(units, device=bank.origins.device).expand(batch, -1, -1)
    parts = bank.layout.parts
    same = (bank.origins[:, :, None] % parts == bank.leaving.origins[:, None] % parts).float()
    return same / same.sum(dim=2, keepdim=True).clamp_min(1)


def _average(x: Tensor, leaving: Tensor, rest: Tensor, rate: Tensor) -> Tensor:
    """Rest · x + Σ_n rate_n · leaving_n, computed in float32, for units `[B, b, T, H, D]`."""
    moved = torch.bmm(rate, leaving.float().flatten(2)).unflatten(2, x.shape[2:])
    average: Tensor = rest[..., None, None, None] * x.float() + moved
    return average.to(x.dtype)
