"""Stages of the tests' own: decisions that look random, yet depend on nothing but where they are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tetherflow import Candidates, Destination, Eviction, Evictor, Layout, Selector, Slots, hookimpl
from tetherflow.pipeline import Pipeline
from tetherflow.testing.companions import draw, evictable, mix
from tetherflow_policies.grab import Relevance, TemporalDiversity, TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame

Salts = Sequence[Sequence[int]]
"""One number a layer and sample; cells of the same salt decide alike."""

FEW_SALTS = [[101 * layer + 7 * row + 1 for row in range(8)] for layer in range(8)]


def scattered(
    salt: int, chunk: int, layout: Layout, origins: Sequence[int], incoming: int, count: int
) -> list[int]:
    """Ranks that `ScatterEvictor` evicts from one cell."""
    may = evictable(layout, len(origins), incoming)
    return [may[i] for i in draw(salt, chunk, [origins[rank] for rank in may], count)]


def wandering(salt: int, chunk: int, layout: Layout, held: int, incoming: int, count: int) -> range:
    """Ranks that `WanderEvictor` evicts: a run of them that starts somewhere else in every chunk."""
    may = evictable(layout, held, incoming)
    first = may.start + mix(salt, chunk) % (len(may) - count + 1)
    return range(first, first + count)


class ScatterEvictor(Evictor):
    """Evicts other ranks in every sample, anywhere between the sink and what must stay recent."""

    def __init__(self, salts: Salts = FEW_SALTS, destination: Destination = "drop") -> None:
        super().__init__(name="scatter")
        self.salts = salts
        self.sends_to: Destination = destination

    @property
    def destination(self) -> Destination:  # type: ignore[override]
        return self.sends_to

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        ranks = [
            scattered(self.salts[slots.layer][row], slots.chunk, slots.layout, origins, slots.incoming, count)
            for row, origins in enumerate(slots.origins.tolist())
        ]
        return Eviction(torch.tensor(ranks), to=self.destination)


class WanderEvictor(Evictor):
    """Evicts a run of ranks, the same in all samples, that starts somewhere else in every chunk."""

    def __init__(self, as_tensor: bool = False) -> None:
        super().__init__(name="wander")
        self.as_tensor = as_tensor

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        ranks = wandering(1, slots.chunk, slots.layout, slots.held, slots.incoming, count)
        return Eviction(listed(ranks, slots) if self.as_tensor else ranks)


class ListedRecallWindow(RecallWindow):
    """`RecallWindow`, its choice written out as a tensor."""

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        first = slots.layout.sink + slots.layout.memory
        return Eviction(listed(range(first, first + count), slots), to=self.destination)


class ListedWindow(Evictor):
    """FIFO past the sink, its choice written out as a tensor."""

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        return Eviction(listed(range(slots.layout.sink, slots.layout.sink + count), slots))


class DrawSelector(Selector):
    """Keeps candidates that look drawn by lot."""

    def __init__(self, salts: Salts = FEW_SALTS) -> None:
        super().__init__(name="draw")
        self.salts = salts

    @hookimpl
    def select(self, candidates: Candidates) -> Tensor:
        chosen = [
            draw(self.salts[candidates.layer][row], candidates.chunk, origins, candidates.capacity)
            for row, origins in enumerate(candidates.origins.tolist())
        ]
        # In any order, as the hook allows.
        return torch.tensor([row[::-1] for row in chosen], dtype=torch.int32)


class MarginTopM(TopM):
    """`TopM` that remembers the closest call it made."""

    def __init__(self) -> None:
        super().__init__(name="top-m")
        self.smallest_margin = float("inf")

    @hookimpl
    def select(self, candidates: Candidates, score: Tensor) -> Tensor:
        ordered = score.sort(dim=1, descending=True).values
        capacity = candidates.capacity
        margin = float((ordered[:, capacity - 1] - ordered[:, capacity]).min())
        self.smallest_margin = min(self.smallest_margin, margin)
        return score.topk(capacity, dim=1).indices


def listed(ranks: range, slots: Slots) -> Tensor:
    """The ranks for every sample, int64 `[B, count]`, newest first (the hook asks for no order)."""
    return torch.tensor(list(ranks)[::-1]).expand(slots.origins.shape[0], -1)


def tethercache(
    *,
    temperature: float = 1.0,
    alpha: float = 0.35,
    tau: float | None = 0.6,
    evict: Evictor | None = None,
    select: Selector | None = None,
) -> Pipeline:
    """The TetherCache pipeline; without an editor if tau is None."""
    return Pipeline(
        evict=evict or RecallWindow(name="recall-window"),
        score=[
            Relevance(Relevance.Options(temperature=temperature), name="relevance"),
            TemporalDiversity(TemporalDiversity.Options(alpha=alpha), name="temporal-diversity"),
        ],
        select=select or TopM(name="top-m"),
        edit=[] if tau is None else [Tame(Tame.Options(tau=tau), name="tame")],
    )
