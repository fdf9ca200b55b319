"""What a pass brings to a layer: queries, keys and values, apart or as one product gives them."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import attrs
from torch import Tensor

from tetherflow.cache.interfaces import Unpacks
from tetherflow.cache.placing import Placing
from tetherflow.cache.slots import Lazy


class Brought(Protocol):
    """Unrotated queries, keys and values of a pass, which are normalised when they are asked for."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What all of it is made of."""
        ...

    @property
    def shown(self) -> Lazy:
        """Queries by frame, `[B, F, T, H, D]`, as stages are shown them."""
        ...

    @property
    def mean_query(self) -> Tensor:
        """Their mean over all tokens, float32 `[B, H, D]`, made once."""
        ...

    def write(self, phases: Tensor, keys: Tensor, values: Tensor, plain: Tensor | None) -> Tensor:
        """Write them to their slots, and rotate queries (see `Placing.write`)."""
        ...


@attrs.frozen(eq=False, slots=False)
class Apart:
    """Three tensors, each `[B, F*T, H, D]`.

    Attributes:
        placing: rotates.
        queries: normalised, as keys are.
        keys: likewise.
        values: likewise.
    """

    placing: Placing
    queries: Tensor
    keys: Tensor
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All three."""
        return self.queries, self.keys, self.values

    @property
    def shown(self) -> Lazy:
        """Queries by frame, `[B, F, T, H, D]`, not a copy."""
        return self.placing.by_frame(self.queries)

    @cached_property
    def mean_query(self) -> Tensor:
        """Their mean over all tokens, float32 `[B, H, D]`, made once."""
        return self.placing.mean_of(self.queries)

    def write(self, phases: Tensor, keys: Tensor, values: Tensor, plain: Tensor | None) -> Tensor:
        """Write them to their slots, and rotate queries."""
        given = self.queries, self.keys, self.values
        return self.placing.write(*given, phases, keys, values, plain)


@attrs.frozen(eq=False, slots=False)
class Packed:
    """One tensor `[B, F*T, 3, H, D]`, of which queries and keys are yet to be normalised.

    Attributes:
        placing: rotates.
        packed: the tensor.
        source: the module that gave it.
    """

    placing: Placing
    packed: Tensor
    source: Unpacks

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The one."""
        return (self.packed,)

    @property
    def shown(self) -> Lazy:
        """What makes queries by frame, `[B, F, T, H, D]`, once."""
        return lambda: self._query

    @cached_property
    def _query(self) -> Tensor:
        return self.placing.by_frame(self.placing.query_of(self.packed, self.source))

    @cached_property
    def mean_query(self) -> Tensor:
        """Their mean over all tokens, float32 `[B, H, D]`, made once; of all queries only if there."""
        if "_query" in self.__dict__:
            return self.placing.mean_of(self._query.flatten(1, 2))
        return self.placing.mean_query_of(self.packed, self.source)

    def write(self, phases: Tensor, keys: Tensor, values: Tensor, plain: Tensor | None) -> Tensor:
        """Write them to their slots, and rotate queries, in one kernel where there is one."""
        return self.placing.write_packed(self.packed, self.source, phases, keys, values, plain)
