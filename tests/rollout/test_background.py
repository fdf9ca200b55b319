"""Work in a thread of its own: order, back-pressure, and errors that reach the caller."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable

import pytest

from tetherflow.rollout.background import Background


def test_items_are_worked_on_in_order_and_all_before_the_end() -> None:
    done: list[int] = []
    background = Background(done.append)
    for item in range(50):
        background.put(item)
    assert background.finish() is None
    assert done == list(range(50))
    assert background.finish() is None


def test_work_goes_on_in_another_thread() -> None:
    threads: list[threading.Thread] = []
    background = Background[int](lambda _: threads.append(threading.current_thread()))
    background.put(0)
    background.finish()
    assert threads[0] is not threading.current_thread()
    assert threads[0].daemon
    assert not threads[0].is_alive()


def test_caller_is_never_further_ahead_than_allowed() -> None:
    """With room for two: one is worked on, two wait, and the fourth `put` waits until the first is done."""
    started, go = threading.Semaphore(0), threading.Semaphore(0)

    def work(item: int) -> None:
        started.release()
        go.acquire()

    background = Background(work, waiting=2)
    background.put(0)
    started.acquire()
    background.put(1)
    background.put(2)
    ahead = threading.Thread(target=background.put, args=(3,))
    ahead.start()
    assert not started.acquire(blocking=False)
    ahead.join(0.05)
    assert ahead.is_alive()
    go.release()
    ahead.join()
    go.release(3)
    assert background.finish() is None


def broken(item: int) -> None:
    if item == 1:
        raise OSError("no space left")


def put_all(background: Background[int], items: Iterable[int]) -> None:
    for item in items:
        background.put(item)


def test_error_reaches_the_next_put_and_nothing_more_is_done() -> None:
    done = []

    def work(item: int) -> None:
        broken(item)
        done.append(item)

    background = Background(work)
    with pytest.raises(OSError, match="no space left"):
        put_all(background, range(1000))
    assert done == [0]
    assert background.finish() is None  # it has been told


def test_error_reaches_the_end() -> None:
    background = Background(broken)
    background.put(0)
    background.put(1)
    assert isinstance(background.finish(), OSError)


def test_items_put_behind_an_error_do_not_block() -> None:
    """More of them than may wait; whoever put them before the error was known must get on."""
    gate = threading.Semaphore(0)

    def work(item: int) -> None:
        gate.acquire()
        raise OSError

    background = Background(work, waiting=1)
    background.put(0)
    late = threading.Thread(target=background.put, args=(1,))
    late.start()
    gate.release()
    late.join()
    assert isinstance(background.finish(), OSError)


def test_threads_take_short_turns_while_any_works_and_usual_ones_afterwards() -> None:
    usual = sys.getswitchinterval()
    started, go = threading.Semaphore(0), threading.Semaphore(0)

    def work(item: int) -> None:
        started.release()
        go.acquire()
        broken(item)

    backgrounds = [Background(work), Background(work)]
    for item, background in enumerate(backgrounds):
        background.put(item)
        started.acquire()
    assert sys.getswitchinterval() < usual / 10
    go.release(2)
    assert [type(each.finish()) for each in backgrounds] == [type(None), OSError]
    assert sys.getswitchinterval() == usual
