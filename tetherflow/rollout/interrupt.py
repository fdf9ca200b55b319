"""Stopping a rollout from outside so that what was generated stays playable."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_PATIENCE: Final = 3  # signals after which waiting for the processes ends


class Interruption:
    """Turns a Ctrl-C (or SIGTERM) into a KeyboardInterrupt, but only where that spoils nothing.

    Anywhere else it is noted, and raised where it is next allowed. Later signals are ignored: the first is
    being obeyed, and a video takes a moment to close.

    Attributes:
        signal: the signal that came; None if none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._allowed = False

    def arm(self) -> None:
        """Receive this process's signals from here on."""
        _handle(self._receive)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let a signal raise within the block.

        Raises:
            KeyboardInterrupt: A signal came within the block or before it.
        """
        self._allowed = True
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or number
        if first and self._allowed:
            raise KeyboardInterrupt


@contextmanager
def restored_signals() -> Iterator[None]:
    """Put the handlers back as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def relay_signals() -> list[int]:
    """Pass signals on to the processes that this one started, and wait for them.

    Each stops as it sees fit; this process must not die before them. A third signal ends the waiting.

    Returns:
        The signals that came; it grows.
    """
    came: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for child in active_children():
            if child.pid is not None:
                os.kill(child.pid, number)
        if len(came) >= _PATIENCE:
            raise KeyboardInterrupt

    _handle(receive)
    return came


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    if threading.current_thread() is threading.main_thread():  # no other thread receives signals
        for number in SIGNALS:
            signal.signal(number, handler)
