"""Work that goes on in a thread of its own while the caller makes the next item."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from threading import Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Calls a function for one item after another, in order, in one thread.

    The caller is never more than a few items ahead: then `put` waits. After the function has raised, nothing
    more is done, and what it raised reaches the caller in the next `put`, or in `finish`.

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
                    self._work(items[0])
                except BaseException as error:
                    self._failure = error
