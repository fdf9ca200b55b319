"""Work that a GPU does beside what follows it, as what follows does not need it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Work = Callable[[], None]


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
        self._later: list[Work] = []
        self._done: list[Work] = []  # what it read must not be freed before it is waited for
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

    def later(self, work: Work) -> None:
        """Do some work beside what follows the next `launch`: what reads much slows down what else does.

        Args:
            work: launches it; what it reads stays as it is until then.
        """
        if self._on:
            self._later.append(work)
        else:
            work()

    def launch(self) -> None:
        """Launch what was left for later, beside what follows."""
        works, self._later = self._later, []
        if works:
            with self():
                for work in works:
                    work()
            self._done.extend(works)

    def mark(self) -> Callable[[], None]:
        """What lets the first stream wait for what has been launched beside it so far, and no longer."""
        if not self._busy or self._stream is None:
            return _nothing
        event, held = self._stream.record_event(), (self._read, self._done)
        self._read, self._done = [], []

        def wait() -> None:
            torch.cuda.current_stream(self._device).wait_event(event)
            for each in held:
                each.clear()

        return wait

    def join(self) -> None:
        """Let what follows wait for all that was launched beside it, or left for later."""
        self.launch()
        # What was made beside may be freed from here on: the next piece waits for those that read it.
        if self._busy and self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self.forget()

    def forget(self) -> None:
        """Let go of what was launched beside, because it has been waited for, or none of it is computed."""
        self._busy = False
        self._read.clear()
        self._later.clear()
        self._done.clear()


def _nothing() -> None:
    """There is nothing to wait for."""
