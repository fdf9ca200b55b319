"""How a cache's budget is split into regions."""

from __future__ import annotations

import attrs

from tetherflow.errors import LayoutError


@attrs.frozen
class Layout:
    """The regions of a cache, in units (latent frames); a cache in time order is sink, memory, recent.

    The names are TetherCache's (arXiv 2606.13035, section 3.1). Regions follow from the time order alone:
    of n units held, the first `sink` are the sink, the last `recent` are recent, what lies between is memory.

    Attributes:
        sink: units at the start that are never dropped or changed (S).
        memory: units recalled from the past (M).
        recent: the newest units, the current chunk included (R).
    """

    sink: int = 3
    memory: int = 14
    recent: int = 4

    def __attrs_post_init__(self) -> None:
        for name in ("sink", "memory", "recent"):
            if getattr(self, name) < 0:
                raise LayoutError(
                    f"region '{name}' is {getattr(self, name)}; a region holds 0 or more frames"
                )
        if self.recent < 1:
            raise LayoutError(
                "region 'recent' is 0; the current chunk lives there, so it needs at least 1 frame"
            )

    @property
    def budget(self) -> int:
        """Units that the cache holds when full (K)."""
        return self.sink + self.memory + self.recent

    def check_chunk(self, frames: int) -> None:
        """Refuse a chunk that does not fit into the recent region.

        Raises:
            LayoutError: The chunk is larger than the recent region.
        """
        if frames > self.recent:
            raise LayoutError(
                f"a chunk of {frames} frames does not fit into a recent region of {self.recent}; "
                f"make 'recent' at least {frames} or the chunk smaller"
            )

    def sink_of(self, held: int) -> range:
        """Ranks of the sink among `held` units in time order."""
        return range(min(self.sink, held))

    def recent_of(self, held: int) -> range:
        """Ranks of the recent region among `held` units in time order."""
        return range(max(min(self.sink, held), held - self.recent), held)

    def memory_of(self, held: int) -> range:
        """Ranks of the memory region among `held` units in time order."""
        return range(self.sink_of(held).stop, self.recent_of(held).start)
