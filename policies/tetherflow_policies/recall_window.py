"""What leaves the recent region becomes a candidate for memory."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tetherflow import Destination, Eviction, Evictor, Layout, Slots, StageOptions, When, hookimpl
from tetherflow.errors import LayoutError


class RecallWindow(Evictor):
    """Send what leaves the recent region to memory's candidates (TetherCache, arXiv 2606.13035, section 3.1).

    While the cache fills, units simply pass from recent into memory. Once it is full, the oldest recent units
    make room for the chunk and compete with memory's residents: in the chunk's context pass, as in
    TetherCache, or earlier.
    """

    class Options(StageOptions):
        """Options of the evictor."""

        when: When = Field(default="commit", description="When memory is decided; begin knows no queries.")

    options: Options
    destination: ClassVar[Destination] = "memory"

    def __init__(self, options: Options | None = None, *, name: str | None = None) -> None:
        super().__init__(options, name=name)
        self.when = self.options.when

    def check_layout(self, layout: Layout) -> None:
        """Refuse regions without memory: nothing could be recalled."""
        if not layout.memory:
            raise LayoutError(
                "'recall-window' recalls into memory, but the regions give it 0 frames; make it 1 or more"
            )

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose the `count` units that follow a full sink, bank and memory."""
        first = slots.layout.standing + slots.layout.memory
        return Eviction(range(first, first + count), to=self.destination)
