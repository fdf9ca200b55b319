"""Attention sink with a sliding window."""

from __future__ import annotations

from tetherflow import Eviction, Evictor, Layout, Slots, hookimpl
from tetherflow.errors import LayoutError


class SinkWindow(Evictor):
    """Keep the first frames for good and drop the oldest of the rest.

    StreamingLLM (arXiv 2309.17453, section 3.2); frame sinks in LongLive (arXiv 2509.22622, section 3.3).
    """

    def check_layout(self, layout: Layout) -> None:
        """Refuse a memory region, which nothing would ever recall into."""
        if layout.memory:
            raise LayoutError(
                f"'sink-window' keeps no memory, but the regions give it {layout.memory} frames; "
                "set it to 0, or use 'recall-window' with a selector"
            )

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose the `count` oldest units past the sink, and the bank if there is one."""
        first = slots.layout.standing
        return Eviction(range(first, first + count))
