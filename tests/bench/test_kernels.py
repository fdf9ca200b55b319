"""A trace's kernels by the parts that launched them."""

from __future__ import annotations

from typing import Any

import pytest

from tetherflow.bench.kernels import Inner, seconds_by_part


def part(name: str, start: float, length: float, thread: int = 1) -> dict[str, Any]:
    return event("user_annotation", f"tetherflow part: {name}", start, length, thread)


def operation(name: str, start: float, length: float, thread: int = 1) -> dict[str, Any]:
    return event("cpu_op", name, start, length, thread)


def launched(at: float, takes: float, number: int, thread: int = 1) -> list[dict[str, Any]]:
    """A launch, and its kernel much later."""
    launch, kernel = event("cuda_runtime", "launch", at, 1, thread), event("kernel", "k", at + 500, takes, 7)
    return [each | {"args": {"correlation": number}} for each in (launch, kernel)]


def event(kind: str, name: str, start: float, length: float, thread: int) -> dict[str, Any]:
    return {"cat": kind, "name": name, "ts": start, "dur": length, "tid": thread}


def test_a_kernel_belongs_to_the_innermost_part_that_launched_it() -> None:
    events = [part("outer", 0, 100), part("inner", 20, 10), part("inner", 60, 10)]
    events += launched(5, 1e6, 1) + launched(25, 2e6, 2) + launched(65, 3e6, 3) + launched(80, 4e6, 4)
    events += launched(200, 9e6, 5)  # in no part
    assert seconds_by_part(events) == {"outer": pytest.approx(5), "inner": pytest.approx(5)}


def test_threads_do_not_mix() -> None:
    events = [part("one", 0, 100, thread=1), part("two", 10, 20, thread=2)]
    events += launched(15, 1e6, 1, thread=1) + launched(15, 2e6, 2, thread=2)
    assert seconds_by_part(events) == {"one": pytest.approx(1), "two": pytest.approx(2)}


def test_operations_are_a_part_where_they_are_called_in_the_one_named() -> None:
    inner = Inner("products", outer="glue", operations=("aten::mm", "aten::addmm"))
    events = [part("glue", 0, 100), part("policy", 60, 20)]
    events += [operation("aten::addmm", 10, 20), operation("aten::mm", 12, 5), operation("aten::add", 40, 5)]
    events += [operation("aten::mm", 65, 5), operation("aten::mm", 120, 5)]
    events += launched(14, 1e6, 1) + launched(25, 2e6, 2)  # one in the other
    events += launched(35, 4e6, 3) + launched(42, 8e6, 4)  # after it, and in one that is none of them
    events += launched(67, 16e6, 5) + launched(75, 32e6, 6)  # in another part
    events += launched(122, 64e6, 7)  # in no part
    found = {"products": pytest.approx(3), "glue": pytest.approx(12), "policy": pytest.approx(48)}
    assert seconds_by_part(events, inner) == found
    assert seconds_by_part(events) == {"glue": pytest.approx(15), "policy": pytest.approx(48)}
