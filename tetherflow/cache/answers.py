"""What stage plugins return to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor

Destination = Literal["drop", "memory"]
"""Where an evicted unit goes: dropped for good (through the bank, if any), or to memory's candidates."""

When = Literal["begin", "first-pass", "commit"]
"""When memory's candidates compete: as the chunk begins, before anything is known of it; in its first pass,
before that layer's attention reads; or in its context pass, likewise."""

Ranks = Sequence[int] | Tensor
"""Units by their place in time order: the same for every sample, or int64 `[B, n]`."""

Placement = Sequence[int] | Tensor
"""The temporal position of every unit held: the same for every sample, or a tensor of reals `[B, held]`."""


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
class Selection:
    """The candidates that make up memory, with more to say than their indices; returned by `select`.

    Attributes:
        keep: indices among the N candidates, int64 `[B, capacity]`, without repeats. A unit that is not kept
            is dropped by name.
        weights: how memory is blended, floating point `[B, capacity, N]`, each row adding up to 1: unit m of
            memory, which keeps the identity of candidate `keep[m]`, becomes Σ_n weights[m, n] · candidate n,
            keys and values alike. Nothing is blended if omitted. Blend only units of the same part.
        metadata: new values of the kept units' metadata by name, `[B, capacity]`; the others stay.
    """

    keep: Tensor
    weights: Tensor | None = None
    metadata: Mapping[str, Tensor] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Segment:
    """What a group of heads reads besides the current chunk, which every head reads; returned by `view`.

    Attributes:
        heads: indices of the heads.
        ranks: the units that they read, none of the current chunk's among them.
    """

    heads: Sequence[int]
    ranks: Ranks


@attrs.frozen(eq=False)
class Revision:
    """Units that change where they are, once the context pass has read them; returned by `revise`.

    Attributes:
        ranks: which; none of the sink's if keys and values are given.
        keys: their new unrotated keys `[B, n, T, heads, head_dim]`; the old ones if omitted.
        values: their new values, likewise; given if keys are.
        metadata: new values of their metadata by name, `[B, n]`; the others stay.
    """

    ranks: Ranks
    keys: Tensor | None = None
    values: Tensor | None = None
    metadata: Mapping[str, Tensor] = attrs.field(factory=dict)


@attrs.frozen
class SideShape:
    """Sizes that a side store may depend on.

    Attributes:
        unit: of one unit's keys, `(T, heads, head_dim)`.
        parts: units of a latent frame.
        budget: units that the cache holds when full.
    """

    unit: tuple[int, int, int]
    parts: int
    budget: int


@attrs.frozen
class SideStore:
    """A tensor that a stage keeps beside the cache, for each layer and sample; all zeros at the beginning.

    Attributes:
        shape: without the batch, which comes first.
        dtype: the cache's if omitted.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
