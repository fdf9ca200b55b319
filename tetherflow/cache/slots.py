"""One layer's units, as stages are shown them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import attrs
from torch import Tensor

from tetherflow.cache.answers import Ranks
from tetherflow.cache.events import Event
from tetherflow.cache.layout import Layout, Regions
from tetherflow.cache.statistics import Statistics
from tetherflow.errors import TetherflowError

Metadata = Mapping[str, Tensor]
"""What stages note of each unit, by name, float32 `[B, n]`: copies."""

Sides = Mapping[str, Mapping[str, Tensor]]
"""Side stores of every stage that declares some, by the stage's name and the store's: live tensors."""


Lazy = Tensor | Callable[[], Tensor]
"""A tensor, or what makes it when it is asked for."""


class Reader(Protocol):
    """Reads the units of one layer when a stage asks for them; it returns copies, but of `stored_keys`."""

    def like(self) -> Tensor:
        """A tensor without elements, of units' shape, type and device: `[0, T, heads, head_dim]`."""
        ...

    def keys(self, ranks: Ranks) -> Tensor:
        """Unrotated keys `[B, n, T, heads, head_dim]`."""
        ...

    def stored_keys(self) -> tuple[Tensor, Tensor]:
        """Unrotated keys of all units where they are stored, not copied, and each one's place `[B, n]`."""
        ...

    def values(self, ranks: Ranks) -> Tensor:
        """Values, likewise."""
        ...

    def statistics(self, ranks: Ranks) -> tuple[Statistics, Statistics]:
        """Key and value statistics of each unit, `[B, n, heads, head_dim]`."""
        ...

    def rotate(self, x: Tensor, positions: Tensor, parts: Tensor) -> Tensor:
        """Rotate units `[B, n, T, heads, head_dim]` to positions, being parts of a frame, both `[B, n]`."""
        ...


@attrs.frozen(eq=False)
class Shown:
    """What every hook is shown.

    Attributes:
        layer: index of the transformer layer.
        chunk: index of the chunk.
        first_frame: index in the video of the current chunk's first frame.
    """

    layer: int
    chunk: int
    first_frame: int = attrs.field(default=0, kw_only=True)
    _sides: Sides = attrs.field(factory=dict, kw_only=True, repr=False)

    def side(self, stage: str) -> Mapping[str, Tensor]:
        """Live tensors of the side stores that a stage declares, `[B, …]`; it may write to them.

        Args:
            stage: the stage's own name, `self.name`.
        """
        return self._sides[stage]


class OfUnits:
    """What follows from units' origins, and the pass's queries, for what shows some units."""

    __slots__ = ()
    layout: Layout
    origins: Tensor
    _query: Lazy | None

    @property
    def frames(self) -> Tensor:
        """Latent frame from which each unit came, int64 `[B, n]`."""
        return self.origins if self.layout.parts == 1 else self.origins // self.layout.parts

    @property
    def parts(self) -> Tensor:
        """Which part of its frame each unit is, int64 `[B, n]`; 0 where units are frames."""
        return self.origins % self.layout.parts

    @property
    def query(self) -> Tensor:
        """Unrotated queries of the current pass `[B, F, tokens of a frame, heads, head_dim]`; not a copy.

        Where they are yet to be normalised, that is done once a layer, when a stage asks for them;
        `Candidates.mean_query` takes less.

        Raises:
            TetherflowError: There are none: the chunk has not begun its passes.
        """
        if self._query is None:
            raise TetherflowError(
                "there is no query yet: memory is decided as the chunk begins; let the evictor decide in the "
                "first pass or at commit"
            )
        return self._query if isinstance(self._query, Tensor) else self._query()


@attrs.frozen(eq=False)
class Slots(Shown, OfUnits):
    """One layer's units in time order.

    Attributes:
        layout: the regions' sizes, in units.
        incoming: units that the current chunk brings.
        origins: serial number of each unit, int64 `[B, n]`, ascending: the latent frame from which it came,
            or frame · parts + part where a unit is a part of a frame.
        regions: which ranks make up each region.
        current: ranks of the current chunk's units; none before it is in.
        event: the prompt switch right before the current chunk, if there was one.
        metadata: what stages note of each unit, `[B, n]` by name.
    """

    layout: Layout
    incoming: int
    origins: Tensor
    regions: Regions = attrs.field(
        default=attrs.Factory(lambda self: self.layout.regions(self.held), takes_self=True), kw_only=True
    )
    current: range = attrs.field(
        default=attrs.Factory(lambda self: range(self.held, self.held), takes_self=True), kw_only=True
    )
    event: Event | None = attrs.field(default=None, kw_only=True)
    metadata: Metadata = attrs.field(factory=dict, kw_only=True)
    _reader: Reader | None = attrs.field(default=None, kw_only=True, repr=False)
    _query: Lazy | None = attrs.field(default=None, kw_only=True, repr=False)

    @property
    def held(self) -> int:
        """Units in the cache, n."""
        return int(self.origins.shape[1])

    @property
    def like(self) -> Tensor:
        """A tensor without elements, of units' shape, type and device: `[0, T, heads, head_dim]`."""
        return self._open.like()

    def read_keys(self, ranks: Ranks) -> Tensor:
        """Unrotated keys of units, `[B, n, T, heads, head_dim]`; a copy, made when called."""
        return self._open.keys(ranks)

    @property
    def stored_keys(self) -> tuple[Tensor, Tensor]:
        """Unrotated keys of all units where they are stored, and each one's place; not copies.

        For what does not depend on the order of units: found for each in the order of storage, `[B, n]`, it
        comes into time order by `found.gather(1, places)`.

        Returns:
            Keys `[B, n, T, heads, head_dim]`, to be read only, and places, int64 `[B, n]`: the unit of rank r
            is `keys[b, places[b, r]]`.
        """
        return self._open.stored_keys()

    def read_values(self, ranks: Ranks) -> Tensor:
        """Values of units, `[B, n, T, heads, head_dim]`; a copy, made when called."""
        return self._open.values(ranks)

    def statistics(self, ranks: Ranks) -> tuple[Statistics, Statistics]:
        """Key and value statistics of units, `[B, n, heads, head_dim]`; cheap if recall keeps them."""
        return self._open.statistics(ranks)

    def rotate(self, x: Tensor, positions: Tensor, parts: Tensor) -> Tensor:
        """Rotate unrotated units `[B, n, T, heads, head_dim]` as attention would read them.

        Args:
            x: the units' keys.
            positions: temporal positions, `[B, n]`.
            parts: which part of a frame each is, `[B, n]`.
        """
        return self._open.rotate(x, positions, parts)

    @property
    def _open(self) -> Reader:
        if self._reader is None:
            raise TetherflowError("these slots were made without tensors; only an engine's can be read")
        return self._reader
