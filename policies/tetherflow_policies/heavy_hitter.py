"""Prefer what has drawn the most attention so far (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tetherflow import Candidates, Revision, Scorer, Slots, StageOptions, hookimpl

ATTENTION = "attention"


class HeavyHitter(Scorer):
    """Prefer units that have drawn the most attention so far.

    H2O (arXiv 2306.14048, section 4): w · Σ_chunks o_i, where o_i is the mean over queries and heads of
    softmax(q·k / √d), summed over the tokens of unit i; the softmax is over all tokens held. Sums travel with
    their units as metadata; each chunk adds its own in the context pass, after attention has read, and so
    shares out 1. As in H2O nothing decays, so what has been held for longer has collected more.

    The attention is exact, but that of some queries only, evenly spaced over the chunk; H2O sums over all of
    them, which `queries: null` does at the price of a second attention. The pooled form, a softmax of pooled
    queries and keys, is cheaper still, but is another score: few keys stand out once the queries' peaks are
    averaged before the softmax, and it is by these that H2O knows a heavy hitter. Queries and keys are
    unrotated, as in TetherCache's relevance: the sums of a unit that moves through the window remain
    comparable. H2O decides for each head and token; here heads share a decision, and tokens do but at
    `unit: token`.
    """

    class Options(StageOptions):
        """Options of the heavy-hitter scorer."""

        weight: float = Field(default=1.0, gt=0, description="Weight w beside other scores.")
        queries: int | None = Field(
            default=32,
            ge=1,
            description="Queries of a chunk whose attention is measured; all if null.",
        )

    options: Options
    metadata: ClassVar[Mapping[str, float]] = {ATTENTION: 0.0}
    reads_statistics = False

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        """Weighted attention that each candidate has collected, `[B, N]`."""
        return self.options.weight * candidates.metadata[ATTENTION]

    @hookimpl
    def revise(self, slots: Slots) -> Revision:
        """Add the attention that this chunk pays to every unit held."""
        query = self._sample(slots.query.flatten(1, 2)).float()
        keys, places = slots.stored_keys
        drawn = _attention(query, keys.flatten(1, 2).float()).unflatten(1, (slots.held, -1)).sum(dim=-1)
        collected = slots.metadata[ATTENTION] + drawn.gather(1, places)
        return Revision(range(slots.held), metadata={ATTENTION: collected})

    def _sample(self, query: Tensor) -> Tensor:
        """Some of the queries `[B, L, H, D]`, evenly spaced."""
        count = query.shape[1]
        if self.options.queries is None or self.options.queries >= count:
            return query
        spread = torch.arange(0, self.options.queries * count, count, device=query.device)
        return query.index_select(1, spread // self.options.queries)


def _attention(query: Tensor, keys: Tensor) -> Tensor:
    """Attention to each of the keys `[B, K, H, D]`, mean over queries `[B, Q, H, D]` and heads: `[B, K]`.

    Logits become attention in place: at this size a second tensor costs more than what is computed in it.
    """
    query = query.transpose(1, 2) / keys.shape[-1] ** 0.5
    logits = query @ keys.permute(0, 2, 3, 1)
    return torch.softmax(logits, dim=-1, out=logits).mean(dim=(1, 2))
