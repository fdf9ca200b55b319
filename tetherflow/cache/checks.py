"""Checks on what stage plugins return, that do not stall a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from tetherflow.cache.beside import Beside
from tetherflow.errors import TetherflowError

Failure = Callable[[], TetherflowError]


@attrs.define(eq=False)
class Condition:
    """That numbers lie between two others.

    Attributes:
        above: what each must exceed.
        below: what each must stay under.
        failure: makes the error if they do not.
        extremes: the least and the largest, scalars, NaN if one of them is; none before they are found.
    """

    above: float
    below: float
    failure: Failure
    extremes: tuple[Tensor, ...] = ()

    def look(self, x: Tensor) -> None:
        """Find the extremes of `x`."""
        self.extremes = x.aminmax()

    def holds(self, low: float, high: float) -> bool:
        """Whether it holds, the two extremes being on the host."""
        return low > self.above and high < self.below


class Checks:
    """Collects conditions that must hold.

    Strict checks read each condition at once and raise on the spot. Deferred ones stay on the device: `flush`
    copies a chunk's extremes to the host without waiting, and the next `flush` compares them there, so a
    fault is reported one chunk late and a steady chunk never waits for the device.

    Args:
        strict: whether to check at once.
        beside: finds the extremes of deferred ones, which nothing waits for.
    """

    def __init__(self, *, strict: bool, beside: Beside | None = None) -> None:
        self.strict = strict
        self._beside = beside or Beside(torch.device("cpu"))
        self._pending: list[Condition] = []
        self._flying: list[Condition] = []
        self._extremes: dict[torch.dtype, Tensor] = {}  # of those that fly: low, high, low, …, on the host
        self._copied: torch.cuda.Event | None = None

    def between(
        self, x: Tensor, above: float, below: float, failure: Failure, *, changes: bool = False
    ) -> None:
        """Raise `failure()` unless `above` < x < `below` everywhere: now, or after the next chunk.

        Reads `x` once: its extremes are NaN if any element is. A comparison would make tensors of its size.

        Args:
            x: looked at beside what follows, so it must not change before the chunk ends.
            above: what each element must exceed.
            below: what each must stay under.
            failure: makes the error.
            changes: whether it may change, so that it is looked at first.
        """
        if not x.numel():
            return
        self._expect(Condition(above, below, failure), lambda: x, changes=changes)

    def finite(self, x: Tensor, failure: Failure, *, changes: bool = False) -> None:
        """Raise `failure()` unless all of `x` is finite, likewise."""
        self.between(x, -math.inf, math.inf, failure, changes=changes)

    def distinct(self, ordered: Tensor, failure: Failure) -> None:
        """Raise `failure()` if a row of `ordered` `[B, n]`, which ascends, repeats a number, likewise."""
        if ordered.shape[1] > 1:
            self._expect(Condition(0, math.inf, failure), lambda: ordered.diff(dim=1))

    def _expect(self, condition: Condition, x: Callable[[], Tensor], *, changes: bool = False) -> None:
        """Look at what `x` returns, and raise the condition's failure unless it holds (see `between`)."""
        if not self.strict and not changes:
            self._beside.later(lambda: condition.look(x()))
            self._pending.append(condition)
            return
        condition.look(x())
        if not self.strict:
            self._pending.append(condition)
        elif not condition.holds(*(extreme.item() for extreme in condition.extremes)):
            raise condition.failure()

    def retake(self) -> Callable[[], None]:
        """What forgets the conditions that are collected from now on."""
        count = len(self._pending)

        def forget() -> None:
            del self._pending[count:]

        return forget

    def forget(self) -> None:
        """Forget all conditions that are not yet known to hold."""
        self._beside.join()
        self._pending, self._flying, self._extremes, self._copied = [], [], {}, None

    def flush(self) -> None:
        """Read the conditions of the previous flush and send those collected since on their way."""
        self._beside.join()
        self.drain()
        if not self._pending:
            return
        self._flying, self._pending = self._pending, []
        found: dict[torch.dtype, list[Tensor]] = {}
        for condition in self._flying:
            found.setdefault(condition.extremes[0].dtype, []).extend(condition.extremes)
        for dtype, extremes in found.items():
            sent = torch.stack(extremes)
            host = torch.empty(sent.shape, dtype=dtype, pin_memory=sent.is_cuda)
            self._extremes[dtype] = host.copy_(sent, non_blocking=True)
        if any(condition.extremes[0].is_cuda for condition in self._flying):
            self._copied = torch.cuda.Event()
            self._copied.record()

    def drain(self) -> None:
        """Wait for the conditions on their way and raise the first that failed."""
        if self._copied is not None:
            self._copied.synchronize()
        flying, self._flying, self._copied = self._flying, [], None
        numbers = {dtype: iter(extremes.tolist()) for dtype, extremes in self._extremes.items()}
        self._extremes = {}
        for condition in flying:
            mine = numbers[condition.extremes[0].dtype]
            if not condition.holds(next(mine), next(mine)):
                raise condition.failure()
