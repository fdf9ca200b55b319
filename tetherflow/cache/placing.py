"""Where units stand in time, and the rotation of their keys to it."""

from __future__ import annotations

import torch
from torch import Tensor

from tetherflow.cache.answers import Placement, Ranks
from tetherflow.cache.fusing import Fuse, step_by_step
from tetherflow.cache.indexing import put, take
from tetherflow.cache.interfaces import CacheShape, Positions, Rotary, Unpacks, Writes
from tetherflow.cache.layout import Layout
from tetherflow.cache.rounding import rounded
from tetherflow.cache.store import LayerStore


class Placing:
    """Positions and rotary phases of one engine's units.

    Unless a policy places them, units stand where their frames were in the video (`absolute`), or at their
    ranks among the units held (`block-relative`; parts of a frame share a position).

    Args:
        rotary: the backbone's rotary embedding.
        shape: the backbone's sizes.
        layout: the regions, in units.
        positions: where units stand by default.
        device: where the cache lives.
        fuse: makes kernels of the rotation of large tensors.
        coarse: whether rotated keys, and values, are rounded (`cache.rounding`).
    """

    def __init__(
        self,
        rotary: Rotary,
        shape: CacheShape,
        layout: Layout,
        positions: Positions,
        device: torch.device,
        fuse: Fuse = step_by_step,
        coarse: bool = False,
    ) -> None:
        self.rotary = rotary
        self.coarse = coarse
        self.parts = layout.parts
        self._frame_tokens = shape.tokens
        self.positions = positions
        self.device = device
        self.fuse = fuse
        part_tokens = torch.arange(shape.tokens, device=device).view(self.parts, -1)
        self._tokens = part_tokens if self.parts > 1 else None
        slots = torch.arange(-(-layout.budget // self.parts) + 1, device=device)
        # Whole frames at their ranks, which is most of what is ever asked for: computed once for all.
        self._ranks = rotary.phases(slots) if positions == "block-relative" else None
        self.chunk = torch.empty(0)
        """Phases of the current chunk's frames, unless a policy places them."""

    def begin(self, history: int, frames: int, first_frame: int) -> None:
        """Place a chunk of `frames` frames, the video's from `first_frame` on, after `history` units."""
        if self._ranks is None:
            positions = torch.arange(first_frame, first_frame + frames, device=self.device)
            phases = self.rotary.phases(positions)
            if self.chunk.shape == phases.shape:
                self.chunk.copy_(phases)  # where it is: a recorded pass reads it there
            else:
                self.chunk = phases
        else:
            first = -(-history // self.parts)
            self.chunk = self._ranks[first : first + frames]

    def chunk_at(self, placement: Placement, current: range) -> Tensor:
        """Phases of the current chunk's frames where a policy places them; a frame's first unit decides."""
        return self.rotary.phases(_columns(placement, current, self.device)[..., :: self.parts])

    def write(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        phases: Tensor,
        keys: Tensor,
        values: Tensor,
        plain: Tensor | None = None,
    ) -> Tensor:
        """Write a pass's rotated keys, and its values, to their slots, and rotate its queries.

        Args:
            query: unrotated, `[B, F*T, H, D]`, as all are.
            key: unrotated, likewise.
            value: likewise.
            phases: of the F frames.
            keys: the slots of what attention reads.
            values: likewise, of values.
            plain: likewise, of unrotated keys, if they are written, too.

        Returns:
            The rotated queries.
        """
        slots = keys, values, plain
        return self.fuse(_write)(
            self.rotary, query, key, value, phases, *slots, self._frame_tokens, self.coarse
        )

    def write_packed(
        self,
        packed: Tensor,
        source: Unpacks,
        phases: Tensor,
        keys: Tensor,
        values: Tensor,
        plain: Tensor | None = None,
    ) -> Tensor:
        """The same for queries, keys and values in one tensor `[B, F*T, 3, H, D]`, normalised here."""
        if isinstance(source, Writes):
            turned = source.write(packed, self.rotary, phases, keys, values, plain, coarse=self.coarse)
            if turned is not None:
                return turned
        slots = keys, values, plain
        return self.fuse(_write_packed)(
            self.rotary, packed, source, phases, *slots, self._frame_tokens, self.coarse
        )

    def by_frame(self, x: Tensor) -> Tensor:
        """A pass's tokens `[B, F*T, …]` by frame, `[B, F, T, …]`."""
        by_frame: Tensor = x.unflatten(1, (-1, self._frame_tokens))
        return by_frame

    def mean_of(self, query: Tensor) -> Tensor:
        """Mean of normalised queries `[B, F*T, H, D]` over all tokens, float32 `[B, H, D]`."""
        return self.fuse(_mean)(query)

    def mean_query_of(self, packed: Tensor, source: Unpacks) -> Tensor:
        """The same of one tensor `[B, F*T, 3, H, D]`."""
        return self.fuse(_mean_query_of)(packed, source)

    def query_of(self, packed: Tensor, source: Unpacks) -> Tensor:
        """Normalised queries `[B, F*T, H, D]` of one tensor `[B, F*T, 3, H, D]`."""
        return self.fuse(_query_of)(packed, source)

    def rotate(self, store: LayerStore, ranks: Ranks, placement: Placement | None) -> None:
        """Rotate the keys at some ranks into the copy that attention reads."""
        slots = store.at(ranks)
        if store.rotated is None or not slots.shape[1]:
            return
        phases = self._phases(store, slots, ranks, placement)
        row = store.book.row
        self.fuse(_rotate)(self.rotary, store.keys, store.rotated, row, slots, phases, self.coarse)

    def turn(self, x: Tensor, positions: Tensor, parts: Tensor) -> Tensor:
        """Rotate units `[B, n, T, H, D]` to positions `[B, n]`, being those parts of a frame `[B, n]`."""
        return self.fuse(_turn)(self.rotary, x, self.rotary.phases(positions, self._tokens_of(parts)))

    def _phases(self, store: LayerStore, slots: Tensor, ranks: Ranks, placement: Placement | None) -> Tensor:
        """Phases of the units at some ranks, which are in these slots `[B, n]`."""
        if placement is None and self._ranks is not None and self.parts == 1:
            if isinstance(ranks, range) and ranks.step == 1:
                return self._ranks[ranks.start : ranks.stop]
            return self._ranks[_index(ranks, self.device)]
        origins = store.unit_origins(slots)
        if placement is not None:
            positions = _columns(placement, ranks, origins.device)
        elif self._ranks is None:
            positions = origins // self.parts
        else:
            positions = _index(ranks, origins.device) // self.parts
        tokens = self._tokens_of(origins % self.parts)
        return self.rotary.phases(positions if tokens is None else positions.expand(origins.shape), tokens)

    def _tokens_of(self, parts: Tensor) -> Tensor | None:
        """Which of a frame's tokens units are, `[B, n, T]`; None if a unit is a frame."""
        return None if self._tokens is None else self._tokens.to(parts.device)[parts]


def _turn(rotary: Rotary, x: Tensor, phases: Tensor) -> Tensor:
    return rotary.turn(x, phases)


def _mean(query: Tensor) -> Tensor:
    return query.mean(dim=1, dtype=torch.float32)


def _mean_query_of(packed: Tensor, source: Unpacks) -> Tensor:
    return _mean(source.query_of(packed))


def _query_of(packed: Tensor, source: Unpacks) -> Tensor:
    return source.query_of(packed)


def _write_packed(
    rotary: Rotary,
    packed: Tensor,
    source: Unpacks,
    phases: Tensor,
    keys: Tensor,
    values: Tensor,
    plain: Tensor | None,
    tokens: int,
    coarse: bool = False,
) -> Tensor:
    query, (key, value) = source.query_of(packed), source.key_value_of(packed)
    return _write(rotary, query, key, value, phases, keys, values, plain, tokens, coarse)


def _write(
    rotary: Rotary,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    phases: Tensor,
    keys: Tensor,
    values: Tensor,
    plain: Tensor | None,
    tokens: int,
    coarse: bool,
) -> Tensor:
    values.copy_(rounded(value, coarse=coarse))
    if plain is not None:
        plain.copy_(key)
    query, key = (x.unflatten(1, (-1, tokens)) for x in (query, key))
    keys.copy_(rounded(rotary.turn(key, phases).flatten(1, 2), coarse=coarse))
    return rotary.turn(query, phases).flatten(1, 2)


def _rotate(
    rotary: Rotary,
    keys: Tensor,
    rotated: Tensor,
    row: Tensor,
    slots: Tensor,
    phases: Tensor,
    coarse: bool,
) -> None:
    """Rotate the keys in some slots `[B, n]` into the same slots of another buffer."""
    if torch.compiler.is_compiling():
        rotated[row, slots] = rounded(rotary.turn(keys[row, slots], phases), coarse=coarse)
    else:  # indexing that is faster by itself
        put(rotated, row, slots, rounded(rotary.turn(take(keys, row, slots), phases), coarse=coarse))


def _columns(placement: Placement, ranks: Ranks, device: torch.device) -> Tensor:
    """Positions of the units at some ranks, `[n]` or `[B, n]`."""
    if not isinstance(placement, Tensor):
        placement = torch.tensor(placement, device=device)
    index = _index(ranks, device)
    if index.dim() == 1:
        return placement[..., index]
    return placement.expand(index.shape[0], -1).gather(1, index)


def _index(ranks: Ranks, device: torch.device) -> Tensor:
    """Ranks as a tensor, `[n]` or `[B, n]`."""
    if isinstance(ranks, Tensor):
        return ranks
    if isinstance(ranks, range):
        return torch.arange(ranks.start, ranks.stop, ranks.step, device=device)
    return torch.tensor(ranks, dtype=torch.int64, device=device)
