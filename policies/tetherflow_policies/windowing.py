"""What the window policies share: who leaves a window that has a sink, and which regions suit it."""

from __future__ import annotations

from tetherflow import Eviction, Layout, Slots
from tetherflow.errors import LayoutError


def drop_oldest(slots: Slots, count: int) -> Eviction:
    """Drop the `count` oldest units past the sink, and past the bank if there is one."""
    first = slots.layout.standing
    return Eviction(range(first, first + count))


def refuse_memory(policy: str, layout: Layout) -> None:
    """Refuse a memory region, which nothing would ever recall into.

    Raises:
        LayoutError: There is one.
    """
    if layout.memory:
        raise LayoutError(
            f"'{policy}' keeps no memory, but the regions give it {layout.memory} frames; "
            "set it to 0, or use 'recall-window' with a selector"
        )
