"""FIFO: the plain sliding window."""

from __future__ import annotations

from tetherflow import Eviction, Evictor, Layout, hookimpl
from tetherflow.errors import LayoutError


class SlidingWindow(Evictor):
    """Drop the oldest units: first in, first out (Self-Forcing, arXiv 2506.08009, section 3.4)."""

    def check_layout(self, layout: Layout) -> None:
        """Refuse a sink, bank or memory, which a plain window does not keep."""
        if layout.bank:
            raise LayoutError(
                f"'sliding-window' keeps no bank, but the regions give it {layout.bank} frames; "
                "set it to 0, or use 'sink-window'"
            )
        if layout.sink or layout.memory:
            raise LayoutError(
                f"'sliding-window' keeps no sink and no memory, but the regions give them {layout.sink} and "
                f"{layout.memory} frames; set both to 0, or use 'sink-window' or 'recall-window'"
            )

    @hookimpl
    def evict(self, count: int) -> Eviction:
        """Choose the `count` oldest units."""
        return Eviction(range(count))
