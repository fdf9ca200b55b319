"""Infinity-RoPE: a window at positions of its own, flushed at a prompt switch, with scene cuts."""

from __future__ import annotations

from pydantic import Field

from tetherflow import Event, Eviction, Evictor, Layout, Placement, Slots, StageOptions, hookimpl
from tetherflow_policies.windowing import drop_oldest, refuse_memory


class InfinityRope(Evictor):
    """Keep the first frame and a short window, at positions that never grow; jump in time at a scene cut.

    Infinity-RoPE (arXiv 2511.20649), its three parts in the paper's order:

    - Block-Relativistic RoPE: a unit of rank r among those read stands at r // P, P units being a frame,
      whatever frame of the video it is; the query stands at the tail. With the defaults 0 … 5, the chunk at
      3 … 5.
    - KV Flush: at a prompt switch with `flush` or `cut` the sink and the newest `keep` frames stay.
    - RoPE Cut: for the one chunk after a `cut`, its own frames stand at `jump`, `jump` + 1, … and what was
      kept at its ranks. From the next chunk on they stand at their ranks like all others.

    Kept of the published code: two frames beside the sink survive a flush, where the paper's text speaks of
    the last one. Left: frame 0 is stored rotated to 0 there and all others unrotated; it is read at 0 in any
    case, so all are unrotated here. There every prompt change flushes; here the prompt schedule says what a
    switch does. The positions are the policy's own: `cache.positions` changes nothing.
    """

    class Options(StageOptions):
        """Options of Infinity-RoPE."""

        keep: int = Field(default=2, ge=0, description="Newest frames that survive a flush, beside the sink.")
        jump: int = Field(default=45, ge=0, description="Position of the first frame after a scene cut.")

    options: Options

    def check_layout(self, layout: Layout) -> None:
        """Refuse a memory region, which nothing would ever recall into."""
        refuse_memory("infinity-rope", layout)

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose the `count` oldest units past the sink."""
        return drop_oldest(slots, count)

    @hookimpl
    def place(self, slots: Slots) -> Placement:
        """Place every unit at its rank, in frames; the chunk elsewhere right after a scene cut."""
        parts, current = slots.layout.parts, slots.current
        ranks = [rank // parts for rank in range(slots.held)]
        if slots.event is None or slots.event.how != "cut":
            return ranks
        chunk = [self.options.jump + index // parts for index in range(len(current))]
        return ranks[: current.start] + chunk

    @hookimpl
    def switch(self, event: Event) -> int | None:
        """Let go of all but the sink and the newest frames at a flush or cut."""
        return self.options.keep if event.how in ("flush", "cut") else None
