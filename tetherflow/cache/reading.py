"""Reading a layer's units on a stage's behalf."""

from __future__ import annotations

from torch import Tensor

from tetherflow.cache.answers import Ranks
from tetherflow.cache.indexing import pick
from tetherflow.cache.placing import Placing
from tetherflow.cache.statistics import Statistics
from tetherflow.cache.store import LayerStore
from tetherflow.errors import TetherflowError


class LiveReader:
    """Reads the units of one layer as they are when a stage asks.

    Args:
        store: the layer's buffers.
        order: slots of the units in time order, `[B, n]`.
        placing: rotates.
    """

    def __init__(self, store: LayerStore, order: Tensor, placing: Placing) -> None:
        self._store = store
        self._order = order
        self._placing = placing

    @property
    def held(self) -> int:
        """How many units there are, n."""
        return self._order.shape[1]

    @property
    def raw(self) -> bool:
        """Whether keys can be read: they are kept unrotated."""
        return self._store.rotated is not None

    def like(self) -> Tensor:
        """A tensor without elements, of units' shape, type and device: `[0, T, H, D]`."""
        return self._store.keys[0, :0]

    def keys(self, ranks: Ranks) -> Tensor:
        """Unrotated keys `[B, n, T, H, D]`."""
        return self._store.take(self._raw.keys, pick(self._order, ranks))

    def stored_keys(self) -> tuple[Tensor, Tensor]:
        """Unrotated keys `[B, held, T, H, D]` slot by slot, not copied, and each unit's slot `[B, held]`."""
        return self._raw.keys[:, : self.held], self._order

    def values(self, ranks: Ranks) -> Tensor:
        """Values, likewise."""
        return self._store.take(self._store.values, pick(self._order, ranks))

    def statistics(self, ranks: Ranks) -> tuple[Statistics, Statistics]:
        """Key and value statistics of each unit, each `[B, n, H, D]`."""
        both = self._raw.statistics(pick(self._order, ranks))
        return both[:, :, 0], both[:, :, 1]

    def rotate(self, x: Tensor, positions: Tensor, parts: Tensor) -> Tensor:
        """Rotate units `[B, n, T, H, D]` to positions `[B, n]`, being those parts of a frame `[B, n]`."""
        return self._placing.turn(x, positions, parts)

    @property
    def _raw(self) -> LayerStore:
        if not self.raw:
            raise TetherflowError(
                "this policy's keys are kept rotated only; a stage that reads keys declares reads_keys = True"
            )
        return self._store
