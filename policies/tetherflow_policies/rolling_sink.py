"""Rolling Sink: a window whose past is replaced by the video's beginning, forth and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from tetherflow import (
    Eviction,
    Evictor,
    Layout,
    Revision,
    SideShape,
    SideStore,
    Slots,
    StageOptions,
    hookimpl,
)
from tetherflow_policies.windowing import drop_oldest, refuse_memory


class RollingSink(Evictor):
    """A FIFO window whose older frames hold the keys and values of the video's first ones.

    Sliding indices and semantics (Rolling Sink, arXiv 2602.07775). The first L = `archive` frames are kept,
    unrotated, beside the cache. Once a chunk's context pass has read, the chunk before it is overwritten, if
    it lies past the archive: frame t then holds frame t mod L of the archive, or L − 1 − t mod L where
    ⌊t / L⌋ is odd, so that the content runs forth and back without a jump. Positions stay those of frame t. A
    steady window of 21 frames thus reads 15 frames of the archive, the 3 before the chunk, and the chunk.

    The published code archives 21 frames, of which it reads the first 18; these are kept here. It also begins
    every chunk from the same tile of noise, which is no matter of the cache, and is left out. It has a window
    alone; beside it, a sink may stand here, or a bank that takes in what leaves.
    """

    class Options(StageOptions):
        """Options of the evictor."""

        archive: int = Field(default=18, ge=1, description="First frames that are kept, L.")

    options: Options
    fixed = ("archive",)

    def check_layout(self, layout: Layout) -> None:
        """Refuse a memory region, which nothing would ever recall into."""
        refuse_memory("rolling-sink", layout)

    def side_stores(self, shape: SideShape) -> Mapping[str, SideStore]:
        """The archive, for each layer: keys and values of its frames."""
        archive = SideStore((self.options.archive * shape.parts, *shape.unit))
        return {"keys": archive, "values": archive}

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose the `count` oldest units of the window."""
        return drop_oldest(slots, count)

    @hookimpl
    def revise(self, slots: Slots) -> Revision | None:
        """Archive the chunk if it is one of the first, and overwrite the one before it if that is not."""
        side, length, parts = slots.side(self.name), self.options.archive, slots.layout.parts
        chunk, first = len(slots.current) // parts, slots.first_frame
        before = max(chunk, -(-first // max(slots.chunk, 1)))  # frames a chunk; a few chunks may be shorter
        if (archived := min(chunk, length - first)) > 0:
            read = slots.current[: archived * parts]
            side["keys"][:, first * parts :][:, : len(read)] = slots.read_keys(read)
            side["values"][:, first * parts :][:, : len(read)] = slots.read_values(read)
        window = slots.regions.recent.start
        oldest = first - (slots.current.start - window) // parts
        replaced = range(max(first - before, length, oldest), first)
        if not replaced:
            return None
        units = [part for frame in replaced for part in _units(_zigzag(frame, length), parts)]
        start = window + (replaced.start - oldest) * parts
        ranks = range(start, start + len(units))
        return Revision(ranks, _of(side["keys"], units), _of(side["values"], units))


def _zigzag(frame: int, length: int) -> int:
    """The frame of the archive that takes a frame's place."""
    turn, index = divmod(frame, length)
    return length - 1 - index if turn % 2 else index


def _units(frame: int, parts: int) -> range:
    return range(frame * parts, (frame + 1) * parts)


def _of(archive: Tensor, units: list[int]) -> Tensor:
    """Units of the archive, `[B, n, …]`; sliced, as an index would have to be copied to a GPU."""
    return torch.stack([archive[:, unit] for unit in units], dim=1)
