"""One layer's tensors: static buffers of slots, and the bookkeeping that moves indices instead of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs
import torch
from torch import Tensor

from tetherflow.cache.answers import Ranks, SideStore
from tetherflow.cache.book import Book
from tetherflow.cache.fusing import Fuse, step_by_step
from tetherflow.cache.indexing import move, pick, put, relocate, take
from tetherflow.cache.rounding import rounded
from tetherflow.cache.statistics import Statistics, moments

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

    def book(
        self,
        layers: int,
        *,
        device: torch.device,
        pooled: bool,
        normed: bool = False,
        metadata: Mapping[str, float] | None = None,
    ) -> Book:
        """An empty book for so many layers (see `Book.empty`)."""
        rows, slots, heads = layers * self.batch, self.budget + self.pending, (self.heads, self.head_dim)
        kept = {"pooled": pooled, "normed": normed}
        return Book.empty(rows, slots, heads, device=device, **kept, metadata=metadata or {})


class LayerStore:
    """Keys and values of one layer, and what is known of its units.

    Attention does not care about the order of keys that carry their positions, so units stay where they are
    put: the slots `0 … held-1` are in use, in any order, and attention reads that prefix as it stands.
    `order` maps time order to slots. Slots from `budget` on hold pending units, which attention does not
    read.

    Args:
        shape: sizes of the buffers.
        book: the layer's rows of the book.
        dtype: type of keys and values.
        rotated: whether to keep rotated copies of the keys beside them (block-relative positions), or a
            buffer for them `[B, K, T, H, D]`, which layers take in turns.
        sides: what each stage keeps beside the cache, by the stage's name and the store's.
        fuse: makes kernels of what is done to large tensors.
        coarse: whether values are rounded (`cache.rounding`); keys are, once rotated (`cache.placing`).
    """

    def __init__(
        self,
        shape: StoreShape,
        book: Book,
        *,
        dtype: torch.dtype,
        rotated: bool | Tensor,
        sides: Mapping[str, Mapping[str, SideStore]] = NO_SIDES,
        fuse: Fuse = step_by_step,
        coarse: bool = False,
    ) -> None:
        self.shape = shape
        self.coarse = coarse
        self.book = book
        self.fuse = fuse
        device = book.origins.device
        unit = (shape.tokens, shape.heads, shape.head_dim)
        slots = shape.budget + shape.pending
        # Keys and values in one buffer, so that a unit moves in one copy.
        self.units = torch.zeros(2, shape.batch, slots, *unit, dtype=dtype, device=device)
        self.keys, self.values = self.units.unbind(dim=0)
        self.shared = isinstance(rotated, Tensor)
        self.rotated = shape.rotated(dtype, device) if rotated is True else None
        if isinstance(rotated, Tensor):
            self.rotated = rotated
        self.order = torch.empty(shape.batch, 0, dtype=torch.int64, device=device)
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
        self.order = self.fuse(_in_time)(self.book.origins[:, :held])

    def at(self, ranks: Ranks) -> Tensor:
        """Slots of the units at some ranks, `[B, n]`."""
        return pick(self.order, ranks)

    def unit_origins(self, slots: Tensor) -> Tensor:
        """Origins of the units in `slots` `[B, n]`."""
        return self.book.origins.gather(1, slots)

    def take(self, buffer: Tensor, slots: Tensor) -> Tensor:
        """Copy of what `buffer` `[B, slots, …]` holds in `slots` `[B, n]`: `[B, n, …]`."""
        return take(buffer, self.book.row, slots)

    def put(self, buffer: Tensor, slots: Tensor, units: Tensor) -> None:
        """Write `units` `[B, n, …]` to `buffer`'s `slots` `[B, n]`."""
        put(buffer, self.book.row, slots, units)

    def read(self, slots: Tensor) -> Tensor:
        """Copies of the keys and values in `slots` `[B, n]`, `[2, B, n, T, H, D]`."""
        return take(self.units, self.book.row, slots, lead=1)

    def waiting_units(self, count: int) -> Tensor:
        """Keys and values of the first pending units where they are, `[2, B, n, T, H, D]`."""
        return self.units[:, :, self.shape.budget : self.shape.budget + count]

    def write(self, slots: Tensor, units: Tensor) -> None:
        """Write unrotated keys and values `[2, B, n, T, H, D]` to `slots` `[B, n]`, and their statistics."""
        self.round(units)
        put(self.units, self.book.row, slots, units, lead=1)
        self.write_statistics(slots, units)

    def round(self, units: Tensor) -> None:
        """Round the values among keys and values `[2, B, n, T, H, D]`, in place, if they are to be coarse."""
        if self.coarse:
            self.fuse(_round)(units[1])

    def write_statistics(self, slots: Tensor, units: Tensor) -> None:
        """Note the statistics of the units `[2, B, n, T, H, D]` that are in `slots` `[B, n]`."""
        if self.book.moments is not None:
            self.book.keep(slots, self._statistics(units))
        if self.book.norms is not None:
            self.put(self.book.norms, slots, _norms(units[0]))

    def move(self, source: Tensor, target: Tensor, *, rotated: bool = False) -> None:
        """Copy units from slots `source` to `target`, both `[B, n]`; all are read before any is written.

        Args:
            source: slots to read.
            target: slots to write.
            rotated: whether the rotated keys go along.
        """
        self.book.move(source, target)
        move(self.units, self.book.row, source, target, lead=1)
        if rotated and self.rotated is not None and not self.shared:
            move(self.rotated, self.book.row, source, target)

    def relocate(self, source: Tensor, target: Tensor, *, aside: bool = False) -> None:
        """Copy keys and values of units to slots that are no other's source (see `indexing.relocate`).

        Args:
            source: slots to read, `[B, n]`.
            target: slots to write, likewise.
            aside: whether what is there goes to the first pending slots before.
        """
        pending = self.shape.budget if aside else None
        relocate(self.units, self.book.row, source, target, lead=1, aside=pending)

    def relocate_rotated(self, source: Tensor, target: Tensor) -> None:
        """The same for rotated keys, if there are any of its own."""
        if self.rotated is not None and not self.shared:
            relocate(self.rotated, self.book.row, source, target)

    def arrange(self) -> None:
        """Put the units held into slots in time order."""
        slots = torch.arange(self.order.shape[1], device=self.order.device).expand_as(self.order)
        self.move(self.order, slots, rotated=True)
        self.order = slots.contiguous()

    def pool(self, start: int, stop: int) -> None:
        """Pool the statistics of slots `start … stop-1`, if any are kept: of what is stored, as rounded."""
        if self.book.moments is not None:
            self.book.keep(slice(start, stop), self._statistics(self.units[:, :, start:stop]))
        if self.book.norms is not None:
            self.book.norms[:, start:stop] = _norms(self.keys[:, start:stop])

    def statistics(self, slots: Tensor) -> Statistics:
        """Statistics of keys and values of the units in `slots` `[B, n]`, `[B, n, 2, H, D]`."""
        kept = self.book.statistics(slots)
        return self._statistics(self.read(slots)) if kept is None else kept

    def key_norms(self, slots: Tensor) -> Tensor:
        """Mean Euclidean norm of the keys of the units in `slots` `[B, n]`, float32 `[B, n, H]`."""
        if self.book.norms is None:
            return _norms(self.take(self.keys, slots))
        return self.take(self.book.norms, slots)

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

    def _statistics(self, units: Tensor) -> Statistics:
        """Statistics of keys and values `[2, B, n, T, H, D]`, `[B, n, 2, H, D]`."""
        mean, variance = self.fuse(moments)(units)
        return Statistics(mean.movedim(0, 2), variance.movedim(0, 2))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from (("units", self.units), ("origins", self.book.origins), ("order", self.order))
        if self.rotated is not None and not self.shared:
            yield "rotated", self.rotated
        if self.book.moments is not None:
            yield "moments", self.book.moments
        if self.book.norms is not None:
            yield "norms", self.book.norms
        if self.book.notes is not None:
            yield "notes", self.book.notes
        for stage, stores in self.sides.items():
            yield from ((f"{stage}.{name}", tensor) for name, tensor in stores.items())


def _in_time(origins: Tensor) -> Tensor:
    """Slots of units in the order of their origins `[B, held]`."""
    return origins.argsort(dim=1)


def _round(values: Tensor) -> None:
    values.copy_(rounded(values, coarse=True))


def _norms(keys: Tensor) -> Tensor:
    """Mean over its tokens of the norm of each unit's keys `[B, n, T, H, D]`, float32 `[B, n, H]`."""
    norms: Tensor = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
    return norms.mean(dim=2)
