"""Work that goes on in a thread of its own while the caller makes the next item."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from threading import Lock, Thread
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

_TURN_SECONDS: Final = 0.0002


class Background(Generic[Item]):
    """Calls a function for one item after another, in order, in one thread.

    The caller is never more than a few items ahead: then `put` waits. After the function has raised, nothing
    more is done, and what it raised reaches the caller in the next `put`, or in `finish`.

    While the function runs, Python's threads take shorter turns. It waits for one after every call that lets
    go of the interpreter, several times a video frame; a caller that launches kernels keeps the interpreter
    even while it waits for room on the GPU, so that each wait would take the usual 5 ms.

    Args:
        work: called with each item.
        waiting: items that may wait to be worked on.
    """

    def __init__(self, work: Callable[[Item], None], *, waiting: int = 2) -> None:
        self._work = work
        # Items go in as lists of one, so that the empty list can mean the end whatever an item is.
        self._queue: Queue[list[Item]] = Queue(maxsize=waiting)
        self._failure: BaseException | None = None
        self._told = False
        # A daemon: a caller that dies without `finish` must not leave its process waiting.
        self._thread = Thread(target=self._run, name="tetherflow-background", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over the next item; waits while too many are waiting.

        Raises:
            BaseException: What the function raised for an earlier item.
        """
        if self._failure is not None:
            self._told = True
            raise self._failure
        self._queue.put([item])

    def finish(self) -> BaseException | None:
        """Wait until every item is worked on; nothing can be put afterwards.

        Returns:
            What the function raised, unless `put` has raised it already.
        """
        if self._thread.is_alive():
            self._queue.put([])
            self._thread.join()
        return None if self._told else self._failure

    def _run(self) -> None:
        while items := self._queue.get():
            if self._failure is None:  # else items are only taken away, so that `put` never waits in vain
                try:
                    with _short_turns():
                        self._work(items[0])
                except BaseException as error:
                    self._failure = error


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let a thread that waits for the interpreter have it soon; as before when the last block is left."""
    global _usual, _blocks  # the interpreter has one interval for all threads
    with _lock:
        if _blocks == 0:
            _usual = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual, _TURN_SECONDS))
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                sys.setswitchinterval(_usual)


_lock: Final = Lock()
_blocks = 0
_usual = 0.0
