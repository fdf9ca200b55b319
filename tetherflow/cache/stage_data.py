"""What competes for memory, what enters it, and what is merged, as stages are shown them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import attrs
import torch
from torch import Tensor

from tetherflow.cache.fusing import Fuse, step_by_step
from tetherflow.cache.layout import Layout
from tetherflow.cache.newcomers import Newcomers
from tetherflow.cache.slots import Lazy, Metadata, OfUnits, Shown, Sides, Slots
from tetherflow.cache.statistics import Statistics
from tetherflow.errors import TetherflowError


def _no_norms() -> Tensor:
    raise TetherflowError("these candidates were made without key norms; only an engine's have some")


def _no_slots() -> Slots:
    raise TetherflowError("these candidates were made without slots; only an engine's have some")


def _no_newcomers() -> Newcomers:
    raise TetherflowError("these candidates were made without statistics; only an engine's have some")


@attrs.frozen(eq=False, kw_only=True)
class Candidates(Shown, OfUnits):
    """Units that compete for one layer's memory region: its residents, then what was just evicted.

    Attributes:
        capacity: how many may stay, M.
        residents: how many of the N candidates are in memory already; they come first.
        origins: serial number of each candidate, int64 `[B, N]`, ascending.
        layout: the regions' sizes, in units.
        metadata: what stages note of each candidate, `[B, N]` by name.
        sample: the sample's place in its batch if it is shown alone, as if B were 1; None for the batch.
        read_keys: returns all unrotated keys `[B, N, T, heads, head_dim]`; a copy, made when called.
        read_values: returns all values, likewise.
        read_slots: returns the layer's units, those that stay where they are included. If memory is decided
            as the chunk begins, the evicted ones are still among them and the chunk is not; else the other
            way round.
        fuse: makes a function on tensors one compiled kernel where the rollout compiles, and returns it as it
            is elsewhere: `candidates.fuse(function)(candidates.mean_keys, …)`; it must be a module's own.
    """

    capacity: int
    residents: int
    origins: Tensor
    layout: Layout = attrs.field(factory=Layout)
    metadata: Metadata = attrs.field(factory=dict)
    sample: int | None = None
    _mean_keys: Lazy
    _mean_query: Lazy | None = None
    _query: Lazy | None = attrs.field(default=None, repr=False)
    _key_norms: Callable[[], Tensor] = attrs.field(default=_no_norms, repr=False)
    read_keys: Callable[[], Tensor]
    read_values: Callable[[], Tensor]
    read_slots: Callable[[], Slots] = attrs.field(default=_no_slots, repr=False)
    _newcomers: Callable[[], Newcomers] = attrs.field(default=_no_newcomers, repr=False)
    fuse: Fuse = attrs.field(default=step_by_step, repr=False)

    @cached_property
    def mean_keys(self) -> Tensor:
        """Mean unrotated key of each candidate, float32 `[B, N, heads, head_dim]`."""
        return self._mean_keys if isinstance(self._mean_keys, Tensor) else self._mean_keys()

    @cached_property
    def newcomers(self) -> Newcomers:
        """Statistics of those just evicted, and of the trusted pool."""
        return self._newcomers()

    @cached_property
    def key_norms(self) -> Tensor:
        """Mean Euclidean norm of each candidate's keys over its tokens, float32 `[B, N, heads]`.

        Cheap where a scorer declares `reads_norms`; else all keys are read.
        """
        return self._key_norms()

    @cached_property
    def mean_query(self) -> Tensor:
        """Mean unrotated query of the current pass, float32 `[B, heads, head_dim]`.

        Raises:
            TetherflowError: There is none: memory is decided as the chunk begins.
        """
        if self._mean_query is None:
            return self.fuse(_mean_query)(self.query)
        return self._mean_query if isinstance(self._mean_query, Tensor) else self._mean_query()

    @property
    def head_dim(self) -> int:
        """Width of an attention head, d."""
        return int(self.mean_keys.shape[-1])


@attrs.define(eq=False, kw_only=True)
class Draft:
    """The newcomers' keys and values, for editors to change before they enter memory.

    They are where newcomers wait for the decision, or copies if memory is decided as the chunk begins:
    nothing else reads them, and the next chunk's newcomers come to lie there. An editor changes `keys` and
    `values` in place or assigns new tensors of the same shape; the rest of the cache is out of its reach. All
    n newcomers are shown, so that shapes do not depend on the decision; only those that were admitted enter
    memory.

    Attributes:
        layer: index of the transformer layer.
        chunk: index of the chunk.
        origins: serial number of each newcomer, int64 `[B, n]`.
        admitted: whether each was selected, or feeds a unit that was, bool `[B, n]`.
        keys: unrotated keys `[B, n, T, heads, head_dim]`.
        values: values, of the same shape.
        key_statistics: each newcomer's own key statistics, `[B, n, heads, head_dim]`.
        value_statistics: each newcomer's own value statistics.
        trusted_keys: key statistics of the trusted pool, `[B, heads, head_dim]`: sink, bank and memory as
            they were before this decision.
        trusted_values: value statistics of the trusted pool.
        trusted_units: how many units the trusted pool holds.
        first_frame: index in the video of the current chunk's first frame.
        sample: the sample's place in its batch if it is shown alone, as if B were 1; None for the batch.
        fuse: makes a function on tensors one compiled kernel where the rollout compiles, and returns it as it
            is elsewhere: `draft.fuse(function)(draft.keys, …)`; it must be a module's own.
    """

    layer: int
    chunk: int
    origins: Tensor
    admitted: Tensor
    keys: Tensor
    values: Tensor
    key_statistics: Statistics
    value_statistics: Statistics
    trusted_keys: Statistics
    trusted_values: Statistics
    trusted_units: int
    first_frame: int = 0
    sample: int | None = None
    fuse: Fuse = attrs.field(default=step_by_step, repr=False)
    _sides: Sides = attrs.field(factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of one unit, T."""
        return int(self.keys.shape[2])

    @property
    def newcomers(self) -> Newcomers:
        """The statistics of all newcomers and of the trusted pool, as they were before any edit."""
        return Newcomers(
            self.key_statistics,
            self.value_statistics,
            self.trusted_keys,
            self.trusted_values,
            self.trusted_units,
        )

    def side(self, stage: str) -> Mapping[str, Tensor]:
        """Live tensors of the side stores that a stage declares; see `Slots.side`."""
        return self._sides[stage]


@attrs.frozen(eq=False, kw_only=True)
class Units:
    """Copies of some units, in time order.

    Attributes:
        origins: serial numbers, int64 `[B, n]`.
        keys: unrotated keys `[B, n, T, heads, head_dim]`.
        values: values, of the same shape.
        metadata: what stages note of each, float32 `[B, n]` by name.
    """

    origins: Tensor
    keys: Tensor
    values: Tensor
    metadata: Metadata


@attrs.define(eq=False, kw_only=True)
class Bank:
    """Copies of the bank's units, for a merger to work into them what leaves the cache.

    A merger changes `keys`, `values` and `metadata` in place or assigns new tensors of the same shape.

    Attributes:
        layer: index of the transformer layer.
        chunk: index of the chunk.
        layout: the regions' sizes, in units.
        origins: serial number of each unit of the bank, int64 `[B, b]`; it stays.
        keys: unrotated keys `[B, b, T, heads, head_dim]`.
        values: values, of the same shape.
        metadata: what stages note of each unit, float32 `[B, b]` by name.
        leaving: the units that leave; read only.
        first_frame: index in the video of the current chunk's first frame.
    """

    layer: int
    chunk: int
    layout: Layout
    origins: Tensor
    keys: Tensor
    values: Tensor
    metadata: dict[str, Tensor]
    leaving: Units
    first_frame: int = 0
    _sides: Sides = attrs.field(factory=dict, repr=False)

    def side(self, stage: str) -> Mapping[str, Tensor]:
        """Live tensors of the side stores that a stage declares; see `Slots.side`."""
        return self._sides[stage]


def _mean_query(query: Tensor) -> Tensor:
    return query.mean(dim=(1, 2), dtype=torch.float32)
