"""Attention sink with a sliding window."""

from __future__ import annotations

from tetherflow import Eviction, Evictor, Layout, Slots, hookimpl
from tetherflow_policies.windowing import drop_oldest, refuse_memory


class SinkWindow(Evictor):
    """Keep the first frames for good and drop the oldest of the rest.

    StreamingLLM (arXiv 2309.17453, section 3.2); frame sinks in LongLive (arXiv 2509.22622, section 3.3).
    """

    def check_layout(self, layout: Layout) -> None:
        """Refuse a memory region, which nothing would ever recall into."""
        refuse_memory("sink-window", layout)

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose the `count` oldest units past the sink, and the bank if there is one."""
        return drop_oldest(slots, count)
