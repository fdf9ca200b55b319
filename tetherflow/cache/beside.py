"""Work that a GPU does beside what follows it, as what follows does not need it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Beside:
    """A second stream, for what would otherwise hold up a chain of small kernels.

    Work begins when what was launched before it is done, and piece follows piece. `join` lets the first
    stream wait for all of it. On a CPU everything happens in order, at once.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on = device.type == "cuda"
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._read: list[Tensor] = []
        self._busy = False

    @contextmanager
    def __call__(self, *read: Tensor) -> Iterator[None]:
        """Do what is launched within the block beside what follows it.

        Args:
            read: tensors of the first stream's that it reads, which must not be freed before it has.
        """
        if not self._on:
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._read.extend(read)
        self._busy = True
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Callable[[], None]:
        """What lets the first stream wait for what has been launched beside it so far, and no longer."""
        if not self._busy or self._stream is None:
            return _nothing
        done = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(done)

    def join(self) -> None:
        """Let what follows wait for all that was launched beside it."""
        # What was made beside may be freed from here on: the next piece waits for those that read it.
        if self._busy and self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self.forget()

    def forget(self) -> None:
        """Let go of what was launched beside, because it has been waited for, or none of it is computed."""
        self._busy = False
        self._read.clear()


def _nothing() -> None:
    """There is nothing to wait for."""
