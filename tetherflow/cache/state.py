"""What a cache holds between chunks, and copies of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from tetherflow.cache.answers import SideShape
from tetherflow.cache.book import EMPTY
from tetherflow.cache.events import Event
from tetherflow.cache.fusing import Fuse
from tetherflow.cache.indexing import close_up
from tetherflow.cache.interfaces import CacheShape, Policy, Positions
from tetherflow.cache.layout import Layout, Regions
from tetherflow.cache.store import LayerStore, StoreShape
from tetherflow.errors import TetherflowError

_COUNTERS: Final = ("chunk", "frames_written", "_history", "_incoming", "_memory", "_stale", "_event")


class CacheState:
    """Buffers of all layers, and the counters that say what is in them.

    Args:
        shape: the backbone's sizes.
        layout: the regions, in units.
        policy: says what it uses.
        batch: samples, B.
        positions: how keys are positioned, unless the policy places them.
        dtype: type of keys and values.
        device: where they live.
        chunk_frames: frames of the largest chunk: as many evicted units can wait for a decision, or as many
            as the recent region has if the policy lets more leave than must.
        share_rotated: whether layers take turns with one buffer of rotated keys.
        fuse: makes kernels of what is done to large tensors.
        coarse: whether values are rounded (`cache.rounding`).
    """

    def __init__(
        self,
        shape: CacheShape,
        layout: Layout,
        policy: Policy,
        *,
        batch: int,
        positions: Positions,
        dtype: torch.dtype,
        device: torch.device,
        chunk_frames: int,
        share_rotated: bool,
        fuse: Fuse,
        coarse: bool,
    ) -> None:
        self.layout = layout
        self.batch = batch
        self.device = device
        uses = policy.uses
        unit = (shape.tokens // layout.parts, shape.heads, shape.head_dim)
        waiting = layout.recent if uses.eager else chunk_frames * layout.parts
        pending = waiting if uses.recall in ("first-pass", "commit") else 0
        sizes = StoreShape(batch, layout.budget, pending, *unit)
        rotated: bool | Tensor = uses.raw or positions == "block-relative"
        if rotated and share_rotated:
            rotated = sizes.rotated(dtype, device)
        sides = policy.side_stores(SideShape(unit, layout.parts, layout.budget))
        # A single token is its own mean.
        pooled = uses.statistics and unit[0] > 1
        kept = {"pooled": pooled, "normed": uses.key_norms}
        self.book = sizes.book(shape.layers, device=device, **kept, metadata=uses.metadata)
        self.layers = [
            LayerStore(
                sizes,
                self.book.rows(row, row + batch),
                dtype=dtype,
                rotated=rotated,
                sides=sides,
                fuse=fuse,
                coarse=coarse,
            )
            for row in range(0, shape.layers * batch, batch)
        ]
        self.waiting = torch.arange(layout.budget, layout.budget + pending, device=device)
        """Slots of units that await a decision, past those that attention reads."""
        self.chunk = -1
        self.frames_written = 0
        self.dropped: list[Tensor] = []
        self.forget_dropped()
        self._history = 0  # units kept while the current chunk runs
        self._incoming = 0  # units of the current chunk
        self._memory = 0  # units in the memory region
        self._stale: int | None = None  # first rank to which units are yet to be rotated, after a flush
        self._event: Event | None = None  # the prompt switch right before the current chunk, or the next

    @property
    def held(self) -> int:
        """Units in the cache, the current chunk's included."""
        return self._history + self._incoming

    @property
    def regions(self) -> Regions:
        """Which of the units held, in time order, make up each region."""
        return self.layout.regions(self.held, self._memory)

    @property
    def nbytes(self) -> int:
        """Bytes that the cache occupies, side buffers included."""
        first = self.layers[0]
        shared = first.rotated.nbytes if first.shared and first.rotated is not None else 0
        return shared + sum(layer.nbytes for layer in self.layers)

    @property
    def side_nbytes(self) -> int:
        """Bytes of the stages' side stores among them."""
        return sum(layer.side_nbytes for layer in self.layers)

    def origins(self) -> Tensor:
        """Serial number of every unit held, in time order, int64 `[layers, B, held]`.

        It is the latent frame from which the unit came, or frame · parts + part where units are parts of one.
        """
        return torch.stack([layer.unit_origins(layer.order) for layer in self.layers])

    def memory_origins(self) -> Tensor:
        """Serial number of every unit in memory, int64 `[layers, B, M]`; −1 until memory is full."""
        memory = self.regions.memory
        if len(memory) < self.layout.memory:
            shape = (len(self.layers), self.batch, self.layout.memory)
            return torch.full(shape, EMPTY, dtype=torch.int64, device=self.device)
        return self.origins()[:, :, memory.start : memory.stop]

    def contents(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of a layer's keys and values in time order, each `[B, held, T, H, D]`.

        Keys are unrotated, except at absolute positions if nothing in the policy reads them unrotated.
        """
        store = self.layers[layer]
        return store.take(store.keys, store.order), store.take(store.values, store.order)

    def sort(self) -> None:
        """Bring every layer's order of time up to date with the origins of the units held."""
        order = self.book.origins[:, : self.held].argsort(dim=1)
        for store, own in zip(self.layers, order.split(self.batch), strict=True):
            store.order = own

    def vacate(self, leaving: Sequence[Tensor], *, aside: bool = False, rotated: bool = True) -> None:
        """Free slots in every layer; the units that stay then fill the first ones.

        Args:
            leaving: each layer's slots, `[B, n]`.
            aside: whether their units await a decision in the slots past the budget; else they are dropped.
            rotated: whether rotated keys go along with the units that stay.
        """
        held, batch = self.layers[0].order.shape[1], self.batch
        slots = torch.cat(list(leaving))
        count = slots.shape[1]
        source = close_up(slots, held)
        if aside:
            pending = self.waiting[:count].expand_as(slots)
            self.book.move(torch.cat([slots, source], dim=1), torch.cat([pending, slots], dim=1))
        else:
            for layer, origins in enumerate(self.book.origins.gather(1, slots).split(batch)):
                self.drop(layer, origins)
            self.book.move(source, slots)
        self.book.origins[:, held - count : held] = EMPTY
        for store, moving, free in zip(self.layers, source.split(batch), slots.split(batch), strict=True):
            store.relocate(moving, free, aside=aside)
            if rotated:
                store.relocate_rotated(moving, free)

    def drop(self, layer: int, origins: Tensor) -> None:
        """Note that a layer has dropped units of these origins, int64 `[B, n]`, in this chunk."""
        before = self.dropped[layer]
        self.dropped[layer] = torch.cat([before, origins], dim=1) if before.shape[1] else origins

    def forget_dropped(self) -> None:
        """Begin a new account of what is dropped."""
        nothing = torch.empty(self.batch, 0, dtype=torch.int64, device=self.device)
        self.dropped = [nothing for _ in self.layers]

    def snapshot(self) -> dict[str, Any]:
        """A copy of the whole state between chunks, from which `restore` continues bit for bit."""
        return {
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "dropped": [tensor.clone() for tensor in self.dropped],
            "layers": [layer.snapshot() for layer in self.layers],
        }

    @torch.inference_mode()  # a session's buffers are inference tensors, which may be written nowhere else
    def restore(self, state: dict[str, Any]) -> None:
        """Bring back what `snapshot` of an engine of the same shape returned.

        Raises:
            TetherflowError: The snapshot is of an engine of another shape.
        """
        found = [
            {name: tensor.shape for name, tensor in layer.items() if name != "order"}
            for layer in state["layers"]
        ]
        if found != [layer.shapes() for layer in self.layers]:
            raise TetherflowError(
                "this snapshot was taken of an engine of another shape: batch, regions, units or backbone"
            )
        for name, value in state["counters"].items():
            setattr(self, name, value)
        for layer, tensors in zip(self.layers, state["layers"], strict=True):
            layer.restore(tensors)
        self.dropped = [tensor.clone() for tensor in state["dropped"]]
