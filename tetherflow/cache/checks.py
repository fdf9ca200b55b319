"""Checks on what stage plugins return, that do not stall a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tetherflow.errors import TetherflowError

Failure = Callable[[], TetherflowError]


class Checks:
    """Collects conditions that must hold.

    Strict checks read each condition at once and raise on the spot. Deferred ones stay on the device: `flush`
    copies a chunk's conditions to the host without waiting, and the next `flush` reads them, so a fault is
    reported one chunk late and a steady chunk never waits for the device.

    Args:
        strict: whether to check at once.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self._pending: list[tuple[Tensor, Failure]] = []
        self._flying: tuple[Tensor, list[Failure]] | None = None
        self._copied: torch.cuda.Event | None = None

    def require(self, holds: Tensor, failure: Failure) -> None:
        """Raise `failure()` unless `holds`, a scalar bool tensor, is true: now, or after the next chunk."""
        if not self.strict:
            self._pending.append((holds, failure))
        elif not bool(holds):
            raise failure()

    def flush(self) -> None:
        """Read the conditions of the previous flush and send those collected since on their way."""
        self.drain()
        if not self._pending:
            return
        flags = torch.stack([holds for holds, _ in self._pending])
        failures = [failure for _, failure in self._pending]
        self._pending = []
        host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=flags.is_cuda)
        host.copy_(flags, non_blocking=True)
        if flags.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._flying = (host, failures)

    def drain(self) -> None:
        """Wait for the conditions on their way and raise the first that failed."""
        if self._flying is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        (host, failures), self._flying = self._flying, None
        for holds, failure in zip(host.tolist(), failures, strict=True):
            if not holds:
                raise failure()


def is_finite(x: Tensor) -> Tensor:
    """Whether all of `x` is finite, as a scalar bool tensor.

    Reads `x` once: its extremes are NaN if any element is. `isfinite` would make several tensors of its size.
    """
    low, high = x.aminmax()
    return (low > -math.inf) & (high < math.inf)
