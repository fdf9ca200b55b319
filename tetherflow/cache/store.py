"""One layer's tensors: static buffers of slots, and the bookkeeping that moves indices instead of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs
import torch
from torch import Tensor

from tetherflow.cache.answers import Ranks, SideStore
from tetherflow.cache.statistics import Statistics

EMPTY = -1
"""Origin of a slot that holds nothing."""
WIDEST: Final = torch.complex128
"""The widest type that indexing moves in one piece; what the bits mean plays no part."""
NOTHING: Final[Mapping[str, float]] = {}
NO_SIDES: Final[Mapping[str, Mapping[str, SideStore]]] = {}


@attrs.frozen
class StoreShape:
    """Sizes of one layer's buffers.

    Attributes:
        batch: samples, B.
        budget: slots that attention may read, K.
        pending: extra slots for evicted units that await a decision.
        tokens: tokens of a unit, T.
        heads: attention heads, H.
        head_dim: width of a head, D.
    """

    batch: int
    budget: int
    pending: int
    tokens: int
    heads: int
    head_dim: int

    def rotated(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer for the rotated keys of the slots that attention may read."""
        size = (self.batch, self.budget, self.tokens, self.heads, self.head_dim)
        return torch.zeros(size, dtype=dtype, device=device)


class LayerStore:
    """Keys, values and origins of one layer.

    Attention does not care about the order of keys that carry their positions, so units stay where they are
    put: the slots `0 … held-1` are in use, in any order, and attention reads that prefix as it stands.
    `order` maps time order to slots. Slots from `budget` on hold pending units, which attention does not
    read.

    Args:
        shape: sizes of the buffers.
        dtype: type of keys and values.
        device: where they live.
        rotated: whether to keep rotated copies of the keys beside them (block-relative positions), or a
            buffer for them `[B, K, T, H, D]`, which layers take in turns.
        pooled: whether to keep each unit's key and value statistics (recall).
        normed: whether to keep the mean norm of each unit's keys.
        metadata: what is noted of each unit: name, and the value of a new one.
        sides: what each stage keeps beside the cache, by the stage's name and the store's.
    """

    def __init__(
        self,
        shape: StoreShape,
        *,
        dtype: torch.dtype,
        device: torch.device,
        rotated: bool | Tensor,
        pooled: bool,
        normed: bool = False,
        metadata: Mapping[str, float] = NOTHING,
        sides: Mapping[str, Mapping[str, SideStore]] = NO_SIDES,
    ) -> None:
        self.shape = shape
        slots = shape.budget + shape.pending
        unit = (shape.tokens, shape.heads, shape.head_dim)
        self.keys = torch.zeros(shape.batch, slots, *unit, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.shared = isinstance(rotated, Tensor)
        self.rotated = shape.rotated(dtype, device) if rotated is True else None
        if isinstance(rotated, Tensor):
            self.rotated = rotated
        self.origins = torch.full((shape.batch, slots), EMPTY, dtype=torch.int64, device=device)
        self.order = torch.empty(shape.batch, 0, dtype=torch.int64, device=device)
        # Of keys and values, mean and variance: one buffer, so that a unit's statistics move in one copy.
        moments = (shape.batch, slots, 2, 2, shape.heads, shape.head_dim)
        self.moments = torch.zeros(moments, dtype=torch.float32, device=device) if pooled else None
        norms = (shape.batch, slots, shape.heads)
        self.norms = torch.zeros(norms, dtype=torch.float32, device=device) if normed else None
        self._initial = {name: (index, value) for index, (name, value) in enumerate(metadata.items())}
        notes = (shape.batch, slots, len(metadata))
        self.notes = torch.zeros(notes, dtype=torch.float32, device=device) if metadata else None
        self.sides = {
            stage: {
                name: torch.zeros(shape.batch, *side.shape, dtype=side.dtype or dtype, device=device)
                for name, side in stores.items()
            }
            for stage, stores in sides.items()
        }

    @property
    def read_keys(self) -> Tensor:
        """The keys that attention reads, `[B, K, T, H, D]`: rotated copies, or keys rotated when written."""
        return self.keys if self.rotated is None else self.rotated

    @property
    def nbytes(self) -> int:
        """Bytes of its own buffers; the order of time, a few bytes a unit, does not count."""
        return sum(tensor.nbytes for name, tensor in self._tensors() if name != "order")

    @property
    def side_nbytes(self) -> int:
        """Bytes of the side stores among them."""
        return sum(tensor.nbytes for stores in self.sides.values() for tensor in stores.values())

    def sort(self, held: int) -> None:
        """Bring `order` up to date with the origins of the first `held` slots."""
        self.order = self.origins[:, :held].argsort(dim=1)

    def at(self, ranks: Ranks) -> Tensor:
        """Slots of the units at some ranks, `[B, n]`."""
        return pick(self.order, ranks)

    def unit_origins(self, slots: Tensor) -> Tensor:
        """Origins of the units in `slots` `[B, n]`."""
        return self.origins.gather(1, slots)

    def take(self, buffer: Tensor, slots: Tensor) -> Tensor:
        """Copy of what `buffer` holds in `slots` `[B, n]`: `[B, n, …]`."""
        taken = _wide(buffer)[self._rows(slots), slots]
        return taken.view(buffer.dtype).view(*slots.shape, *buffer.shape[2:])

    def put(self, buffer: Tensor, slots: Tensor, units: Tensor) -> None:
        """Write `units` `[B, n, …]` to `buffer`'s `slots` `[B, n]`."""
        _wide(buffer)[self._rows(slots), slots] = _wide(units)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write unrotated keys and values `[B, n, T, H, D]` to `slots` `[B, n]`, and their statistics."""
        keys, values = keys.contiguous(), values.contiguous()
        self.put(self.keys, slots, keys)
        self.put(self.values, slots, values)
        if self.moments is not None:
            self.put(self.moments, slots, _moments(keys, values))
        if self.norms is not None:
            self.put(self.norms, slots, _norms(keys))

    def move(self, source: Tensor, target: Tensor, *, rotated: bool = False) -> None:
        """Copy units from slots `source` to `target`, both `[B, n]`; all are read before any is written.

        Args:
            source: slots to read.
            target: slots to write.
            rotated: whether the rotated keys go along; pending slots have none.
        """
        rows = self._rows(source)
        along = (self.moments, self.norms, self.notes, self.rotated if rotated and not self.shared else None)
        for buffer in (self.keys, self.values, self.origins, *along):
            if buffer is not None:
                wide = _wide(buffer)
                wide[rows, target] = wide[rows, source]

    def vacate(self, leaving: Tensor, held: int) -> None:
        """Free the slots `leaving` `[B, n]` of `held` units; those that stay then fill the first slots."""
        kept = held - leaving.shape[1]
        gone = torch.zeros(leaving.shape[0], held, dtype=torch.bool, device=leaving.device)
        gone.scatter_(1, leaving, True)
        tail = torch.arange(kept, held, device=leaving.device).expand(leaving.shape[0], -1)
        holes = leaving.sort(dim=1).values  # those below the new end first
        self.move(tail, pair_off(tail, ~gone[:, kept:], holes), rotated=True)
        self.origins[:, kept:held] = EMPTY

    def arrange(self) -> None:
        """Put the units held into slots in time order."""
        slots = torch.arange(self.order.shape[1], device=self.order.device).expand_as(self.order)
        self.move(self.order, slots, rotated=True)
        self.order = slots.contiguous()

    def admit(self, slots: slice, origins: Tensor) -> None:
        """Let new units of some origins `[n]` have slots; their keys and values are still to come."""
        self.origins[:, slots] = origins
        if self.notes is not None:
            for index, value in self._initial.values():
                self.notes[:, slots, index] = value

    def pool(self, start: int, stop: int) -> None:
        """Pool the statistics of slots `start … stop-1`, if any are kept: of what is stored, as rounded."""
        if self.moments is not None:
            self.moments[:, start:stop] = _moments(self.keys[:, start:stop], self.values[:, start:stop])
        if self.norms is not None:
            self.norms[:, start:stop] = _norms(self.keys[:, start:stop])

    def statistics(self, slots: Tensor) -> tuple[Statistics, Statistics]:
        """Key and value statistics of the units in `slots` `[B, n]`, each `[B, n, H, D]`."""
        if self.moments is None:
            return Statistics.of(self.take(self.keys, slots)), Statistics.of(self.take(self.values, slots))
        keys, values = self.take(self.moments, slots).unbind(dim=2)
        return Statistics(*keys.unbind(dim=2)), Statistics(*values.unbind(dim=2))

    def key_norms(self, slots: Tensor) -> Tensor:
        """Mean Euclidean norm of the keys of the units in `slots` `[B, n]`, float32 `[B, n, H]`."""
        if self.norms is None:
            return _norms(self.take(self.keys, slots))
        return self.take(self.norms, slots)

    def metadata(self, slots: Tensor) -> dict[str, Tensor]:
        """Copies of what is noted of the units in `slots` `[B, n]`, float32 `[B, n]` by name."""
        if self.notes is None:
            return {}
        noted = self.take(self.notes, slots)
        return {name: noted[..., index] for name, (index, _) in self._initial.items()}

    def note(self, slots: Tensor, metadata: Mapping[str, Tensor]) -> None:
        """Change what is noted of the units in `slots` `[B, n]`."""
        for name, noted in metadata.items():
            if self.notes is not None:
                self.notes[..., self._initial[name][0]].scatter_(1, slots, noted.to(torch.float32))

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of all buffers but `order`, which grows while the cache fills."""
        return {name: tensor.shape for name, tensor in self._tensors() if name != "order"}

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all buffers."""
        return {name: tensor.clone() for name, tensor in self._tensors()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Bring back what `snapshot` returned."""
        self.order = state["order"].clone()
        for name, tensor in self._tensors():
            tensor.copy_(state[name])

    def _rows(self, slots: Tensor) -> Tensor:
        return torch.arange(slots.shape[0], device=slots.device)[:, None]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from (
            ("keys", self.keys),
            ("values", self.values),
            ("origins", self.origins),
            ("order", self.order),
        )
        if self.rotated is not None and not self.shared:
            yield "rotated", self.rotated
        if self.moments is not None:
            yield "moments", self.moments
        if self.norms is not None:
            yield "norms", self.norms
        if self.notes is not None:
            yield "notes", self.notes
        for stage, stores in self.sides.items():
            yield from ((f"{stage}.{name}", tensor) for name, tensor in stores.items())


def _moments(keys: Tensor, values: Tensor) -> Tensor:
    """Mean and variance of units' keys and values `[B, n, T, H, D]`, `[B, n, 2, 2, H, D]`."""
    found = (Statistics.of(keys), Statistics.of(values))
    return torch.stack([torch.stack([x.mean, x.variance], dim=2) for x in found], dim=2)


def _norms(keys: Tensor) -> Tensor:
    """Mean over its tokens of the norm of each unit's keys `[B, n, T, H, D]`, float32 `[B, n, H]`."""
    norms: Tensor = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
    return norms.mean(dim=2)


def _wide(buffer: Tensor) -> Tensor:
    """The same memory with a unit in elements of 16 bytes, `[B, slots, …]`: indexing costs by the element."""
    if buffer.dim() == 2 or buffer[0, 0].nbytes % WIDEST.itemsize:
        return buffer
    return buffer.flatten(2).view(WIDEST)


def pick(order: Tensor, ranks: Ranks) -> Tensor:
    """Columns of `order` `[B, held]` at some ranks, `[B, n]`."""
    if isinstance(ranks, Tensor):
        return order.gather(1, ranks)
    if isinstance(ranks, range) and ranks.step == 1:
        return order[:, ranks.start : max(ranks.start, ranks.stop)]
    return order[:, torch.tensor(ranks, dtype=torch.int64, device=order.device)]


def pair_off(movers: Tensor, moving: Tensor, holes: Tensor) -> Tensor:
    """Give each moving unit a vacant slot, with shapes that do not depend on how many move.

    Args:
        movers: slots of units that may move, `[B, n]`.
        moving: which of them do, bool `[B, n]`.
        holes: slots that may be vacant, `[B, m]`, those that are first; at least as many a row as move.

    Returns:
        Each mover's target slot, `[B, n]`: the next hole for one that moves, its own slot otherwise.
    """
    rank = (moving.cumsum(dim=1) - 1).clamp(0, holes.shape[1] - 1)
    return torch.where(moving, holes.gather(1, rank), movers)
