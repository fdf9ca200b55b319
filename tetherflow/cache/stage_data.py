"""What the engine shows to stage plugins, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs
from torch import Tensor

from tetherflow.cache.layout import Layout
from tetherflow.cache.statistics import Statistics

Destination = Literal["drop", "memory"]
"""Where an evicted unit goes: dropped for good, or to the memory region's candidates."""


@attrs.frozen(eq=False)
class Slots:
    """One layer's cache as a chunk begins, in time order; given to `evict`.

    Attributes:
        layer: index of the transformer layer.
        chunk: index of the chunk that begins.
        layout: the regions.
        incoming: units that the chunk brings.
        origins: latent frame from which each unit came, int64 `[B, n]`, ascending.
    """

    layer: int
    chunk: int
    layout: Layout
    incoming: int
    origins: Tensor

    @property
    def held(self) -> int:
        """Units in the cache, n."""
        return int(self.origins.shape[1])


@attrs.frozen(eq=False)
class Eviction:
    """The units that leave to make room for a chunk; returned by `evict`.

    Attributes:
        ranks: which units leave, as ranks in time order: a range if the choice is the same for every sample
            (cheaper: the engine then knows which keys keep their positions), or int64 `[B, count]`.
        to: where they go.
    """

    ranks: range | Tensor
    to: Destination = "drop"


@attrs.frozen(eq=False)
class Candidates:
    """Units that compete for one layer's memory region: its residents, then what was just evicted.

    Attributes:
        layer: index of the transformer layer.
        chunk: index of the chunk in its context pass.
        capacity: how many may stay, M.
        residents: how many of the N candidates are in memory already; they come first.
        origins: latent frame of each candidate, int64 `[B, N]`, ascending.
        mean_keys: mean unrotated key of each, float32 `[B, N, heads, head_dim]`.
        mean_query: mean unrotated query of the context pass, float32 `[B, heads, head_dim]`.
        read_keys: returns all unrotated keys `[B, N, T, heads, head_dim]`; a copy, made when called.
        read_values: returns all values, likewise.
    """

    layer: int
    chunk: int
    capacity: int
    residents: int
    origins: Tensor
    mean_keys: Tensor
    mean_query: Tensor
    read_keys: Callable[[], Tensor]
    read_values: Callable[[], Tensor]

    @property
    def head_dim(self) -> int:
        """Width of an attention head, d."""
        return int(self.mean_keys.shape[-1])


@attrs.define(eq=False)
class Draft:
    """Copies of the newcomers' keys and values, for editors to change before they enter memory.

    An editor changes `keys` and `values` in place or assigns new tensors of the same shape; the live cache is
    out of its reach. All n newcomers are shown, so that shapes do not depend on the decision; the engine
    writes back only those that were admitted.

    Attributes:
        layer: index of the transformer layer.
        chunk: index of the chunk in its context pass.
        origins: latent frame of each newcomer, int64 `[B, n]`.
        admitted: whether each was selected, bool `[B, n]`.
        keys: unrotated keys `[B, n, T, heads, head_dim]`.
        values: values, of the same shape.
        key_statistics: each newcomer's own key statistics, `[B, n, heads, head_dim]`.
        value_statistics: each newcomer's own value statistics.
        trusted_keys: key statistics of the trusted pool, sink and memory as they were before this decision,
            `[B, heads, head_dim]`.
        trusted_values: value statistics of the trusted pool.
        trusted_units: how many units the trusted pool holds.
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

    @property
    def tokens(self) -> int:
        """Tokens of one unit, T."""
        return int(self.keys.shape[2])
