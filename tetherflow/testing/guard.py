"""Watches over what a hook must leave alone: what it was given, and the live cache."""

from __future__ import annotations

from torch import Tensor

from tetherflow.cache import CacheEngine
from tetherflow.errors import ConformanceError
from tetherflow.testing.watch import Call, may_write, same, tensors_given


class Guard:
    """Compares what a hook could reach before and after its call.

    Args:
        engine: whose cache it watches.
    """

    def __init__(self, engine: CacheEngine) -> None:
        self.engine = engine
        self._given: dict[str, Tensor] = {}
        self._cache: list[Tensor] = []

    def remember(self, call: Call) -> None:
        """Copy what the hook must leave alone."""
        self._given = {name: x.clone() for name, x in tensors_given(call.given) if not may_write(name)}
        self._cache = self._contents()

    def compare(self, call: Call) -> None:
        """Raise if the hook changed any of it.

        Raises:
            ConformanceError: It did; the pipeline adds which plugin it was, and where.
        """
        for name, x in tensors_given(call.given):
            if name in self._given and not same(x, self._given[name]):
                raise ConformanceError(f"changed {name}, which is not its own; change a copy")
        for index, (x, kept) in enumerate(zip(self._contents(), self._cache, strict=True)):
            if not same(x, kept):
                what = ("keys", "values")[index % 2]
                raise ConformanceError(
                    f"wrote through to the live cache: stored {what} of layer {index // 2} changed during "
                    "the call; change the draft alone, the engine writes it back"
                )

    def _contents(self) -> list[Tensor]:
        layers = range(self.engine.shape.layers)
        return [tensor for layer in layers for tensor in self.engine.contents(layer)]
