"""How a cache's budget is split into regions."""

from __future__ import annotations

import attrs

from tetherflow.errors import LayoutError


@attrs.frozen
class Regions:
    """Ranks of each region among the units held, in time order: sink, bank, memory, recent.

    Attributes:
        sink: the first units, which never leave and never change.
        bank: units that never leave, but take in what does.
        memory: units recalled from the past.
        recent: the newest units.
    """

    sink: range
    bank: range
    memory: range
    recent: range


@attrs.frozen
class Layout:
    """The regions of a cache, in latent frames, or in units where a unit is a part of a frame.

    The names are TetherCache's (arXiv 2606.13035, section 3.1), but for the bank. A recipe speaks of frames;
    the engine and the stages of units, `parts` of them a frame (`in_units`).

    Attributes:
        sink: units at the start that are never dropped or changed (S).
        memory: units recalled from the past (M).
        recent: the newest units, the current chunk included (R).
        bank: units after the sink that are never dropped and take in what is (`Merger`).
        parts: units of a latent frame, P.
    """

    sink: int = 3
    memory: int = 14
    recent: int = 4
    bank: int = 0
    parts: int = 1

    def __attrs_post_init__(self) -> None:
        for name in ("sink", "bank", "memory", "recent"):
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
        return self.sink + self.bank + self.memory + self.recent

    @property
    def standing(self) -> int:
        """Units at the start that never leave: sink and bank."""
        return self.sink + self.bank

    def in_units(self, parts: int) -> Layout:
        """These regions, given in frames, in units of which a frame has `parts`."""
        return Layout(self.sink * parts, self.memory * parts, self.recent * parts, self.bank * parts, parts)

    def check_chunk(self, frames: int) -> None:
        """Refuse a chunk of `frames` latent frames that does not fit into the recent region.

        Raises:
            LayoutError: The chunk is larger than the recent region.
        """
        recent = self.recent // self.parts
        if frames > recent:
            raise LayoutError(
                f"a chunk of {frames} frames does not fit into a recent region of {recent}; "
                f"make 'recent' at least {frames} or the chunk smaller"
            )

    def regions(self, held: int, memory: int | None = None) -> Regions:
        """Which ranks make up each region.

        Args:
            held: units held.
            memory: how many of them are in memory; what exceeds a full recent region if omitted.
        """
        sink = min(self.sink, held)
        standing = min(self.standing, held)
        if memory is None:
            memory = max(0, held - standing - self.recent)
        recent = standing + memory
        return Regions(range(sink), range(sink, standing), range(standing, recent), range(recent, held))
