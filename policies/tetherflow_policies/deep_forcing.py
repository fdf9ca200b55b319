"""Deep Forcing: a deep sink, and loose tokens compressed by how much recent queries attend to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tetherflow import (
    Candidates,
    Destination,
    Eviction,
    Evictor,
    Layout,
    Scorer,
    Selection,
    Selector,
    SideShape,
    SideStore,
    Slots,
    StageOptions,
    When,
    hookimpl,
)
from tetherflow.errors import LayoutError

SELECTED = "selected"
"""Metadata: how often a unit was selected for memory."""


class DeepForcing(Evictor):
    """When the cache is full, let all but a deep sink and the newest frames compete for memory.

    Deep Forcing (arXiv 2512.05081), Deep Sink and Participative Compression. The regions are the sink S, as
    deep as half the cache; memory, the top C; and recent, of which `recent` frames, the chunk's included, are
    never compressed. All between compete in the chunk's first pass, which sends more away than must go: with
    the published 10 + 2 + 9 frames and `recent` 4, the cache goes 21 → (24 → 16) → 19 → (22 → 16) → …, so
    that every second chunk compresses. Compression is of loose tokens: give the recipe `unit: token`.

    The published re-alignment rotates the sink in place, to stand right before what was selected, and that
    right before the recent frames. Block-relative positions are this alignment, computed afresh: token r of
    those read, in order of time, stands at r // P, P tokens being a frame. Use them.

    Left of the published code: its selected tokens keep stale phases, and its first re-alignment counts from
    before the new chunk, which leaves a gap of three frames behind the sink.
    """

    class Options(StageOptions):
        """Options of the evictor."""

        recent: int = Field(default=4, ge=1, description="Newest frames that are not compressed.")

    options: Options
    fixed = ("recent",)
    destination: ClassVar[Destination] = "memory"
    when: When = "first-pass"
    eager = True

    def check_layout(self, layout: Layout) -> None:
        """Refuse regions without memory, or with less in recent than is never compressed."""
        if not layout.memory:
            raise LayoutError(
                "'deep-forcing' compresses into memory, but the regions give it 0 frames; make it 1 or more"
            )
        if layout.recent < self.options.recent:
            raise LayoutError(
                f"'deep-forcing' leaves {self.options.recent} recent frames uncompressed, but the regions "
                f"give recent {layout.recent}; make it larger, or lower the option 'recent'"
            )

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose everything between memory and the newest frames, at least `count` units."""
        layout = slots.layout
        newest = max(0, self.options.recent * layout.parts - slots.incoming)
        return Eviction(range(layout.standing + layout.memory, slots.held - newest), to=self.destination)


class Participation(Scorer):
    """How much the newest frames' queries attend to each candidate, before any softmax.

    Deep Forcing (arXiv 2512.05081), Participative Compression: s_j = (Σ_i q_i) · k_j / (√d · H), one score
    for all H heads, with queries and keys rotated to where their frames are in the video. i runs over all
    queries of the newest `window` frames: those of the pass that decides and, where the chunk has fewer
    frames, clean ones from before it, of which each layer keeps the sums. A unit of several tokens scores
    their mean.

    Kept of the published code: that the current chunk's queries are noisy when they decide. Left: its option
    to take the largest q_i · k_j instead of the sum; and noisy queries of earlier passes in the window, which
    a chunk of fewer than three frames would find there.
    """

    class Options(StageOptions):
        """Options of the scorer."""

        window: int = Field(default=4, ge=1, description="Newest frames whose queries are pooled.")

    options: Options
    fixed = ("window",)
    needs_query = True
    reads_statistics = False

    def side_stores(self, shape: SideShape) -> Mapping[str, SideStore]:
        """The newest clean frames' queries, rotated and summed, float32 `[window, heads, head_dim]`."""
        return {"queries": SideStore((self.options.window, *shape.unit[1:]), torch.float32)}

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        """Participation of each candidate, `[B, N]`."""
        slots = candidates.read_slots()
        newest = self._newest(slots).sum(dim=1)
        keys = slots.rotate(candidates.read_keys(), candidates.frames, candidates.parts).float().mean(dim=2)
        drawn = (newest[:, None] * keys).sum(dim=(2, 3))
        return drawn / (math.sqrt(keys.shape[-1]) * keys.shape[2])

    @hookimpl
    def revise(self, slots: Slots) -> None:
        """Keep the clean frames' queries for the chunks to come; nothing of the cache changes."""
        slots.side(self.name)["queries"].copy_(self._newest(slots))

    def _newest(self, slots: Slots) -> Tensor:
        """Rotated queries of the newest frames, summed by frame, `[B, window, heads, head_dim]`."""
        chunk, frames = slots.current, slots.query.shape[1]
        units = slots.query.flatten(1, 2).unflatten(1, (len(chunk), -1))
        at, parts = (x[:, chunk.start : chunk.stop] for x in (slots.frames, slots.parts))
        pooled = slots.rotate(units, at, parts).float().unflatten(1, (frames, -1)).sum(dim=(2, 3))
        return torch.cat([slots.side(self.name)["queries"], pooled], dim=1)[:, -self.options.window :]


class CappedTopM(Selector):
    """Keep the M candidates of the highest score; one that was kept `reuse` times comes after all others.

    Deep Forcing (arXiv 2512.05081): a token that was selected 7 times is no longer eligible. Where fewer than
    M are eligible the best of the others make up for it, so that memory stays full.
    """

    class Options(StageOptions):
        """Options of the selector."""

        reuse: int = Field(default=7, ge=1, description="How often a unit may be kept.")

    options: Options
    needs_score = True
    metadata: ClassVar[Mapping[str, float]] = {SELECTED: 0}

    @hookimpl
    def select(self, candidates: Candidates, score: Tensor) -> Selection:
        """The best candidates, with what was noted of them counted on."""
        times = candidates.metadata[SELECTED]
        worn = (times >= self.options.reuse).to(torch.int8)
        ranked = score.argsort(dim=1, descending=True, stable=True)
        ranked = ranked.gather(1, worn.gather(1, ranked).argsort(dim=1, stable=True))
        keep = ranked[:, : candidates.capacity]
        return Selection(keep, metadata={SELECTED: times.gather(1, keep) + 1})
