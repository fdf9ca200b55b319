"""A GPU's time by parts, from the profiler: how long kernels run, whoever waits for whom."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Self

import attrs
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tetherflow.bench.stopwatch import PartWatch

_PREFIX: Final = "tetherflow part: "
_ON_DEVICE: Final = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES: Final = ("cuda_runtime", "cuda_driver")


@attrs.frozen
class Inner:
    """Operations that are a part of their own where they are called in a certain part, compiled or not.

    Attributes:
        name: of the part that they are.
        outer: that in which they are called; where they are called in others, they belong to those.
        operations: as torch's profiler names them, `aten::mm`.
    """

    name: str
    outer: str
    operations: Collection[str]

    def within(self, part: str | None) -> str | None:
        """The part that one belongs to which is called in another, or in none."""
        return self.name if part == self.outer else part


class KernelWatch(PartWatch):
    """Measures named parts; what a part's inner parts launch counts as theirs alone.

    Use it as a context manager around the work; the parts are known once it is left.

    Args:
        inner: operations that count as a part.
    """

    def __init__(self, inner: Inner | None = None) -> None:
        self._inner = inner
        self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._profile.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        torch.cuda.synchronize()
        self._profile.__exit__(kind, error, trace)
        if kind is None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace.json"
                self._profile.export_chrome_trace(str(path))
                self._seconds = seconds_by_part(json.loads(path.read_text())["traceEvents"], self._inner)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is launched within the block as a part."""
        with record_function(_PREFIX + name):
            yield

    def seconds(self) -> dict[str, float]:
        """How long the device was busy for each part, without its inner parts."""
        return dict(self._seconds)


class _Moment(IntEnum):
    """What happens on the host; of what happens at once, this is the order."""

    END = 0
    BEGIN = 1
    LAUNCH = 2


@attrs.frozen
class _Point:
    """A moment on the host: a part or an operation ends or begins, or something is launched."""

    time: float
    what: _Moment
    part: str | None = None
    seconds: float = 0.0


def seconds_by_part(events: Iterable[dict[str, Any]], inner: Inner | None = None) -> dict[str, float]:
    """How long the device was busy for each part of a trace.

    Args:
        events: of a Chrome trace by torch's profiler, times in microseconds. A kernel belongs to the
            innermost part in which its thread launched it.
        inner: operations that count as a part.
    """
    durations: dict[int, float] = {}
    threads: dict[object, list[_Point]] = defaultdict(list)
    launches: list[tuple[object, float, int]] = []
    operations = inner.operations if inner else ()
    for event in events:
        kind, args, name = event.get("cat"), event.get("args", {}), event.get("name", "")
        if kind in _ON_DEVICE and "correlation" in args:
            durations[args["correlation"]] = durations.get(args["correlation"], 0.0) + event["dur"] / 1e6
        elif kind in _LAUNCHES and "correlation" in args:
            launches.append((event["tid"], event["ts"], args["correlation"]))
        elif kind == "user_annotation" and name.startswith(_PREFIX):
            threads[event["tid"]] += _from_to(event, name.removeprefix(_PREFIX))
        elif kind == "cpu_op" and name in operations:
            threads[event["tid"]] += _from_to(event)
    for thread, moment, correlation in launches:
        seconds = durations.get(correlation, 0.0)
        threads[thread].append(_Point(moment, _Moment.LAUNCH, seconds=seconds))
    total: dict[str, float] = defaultdict(float)
    for points in threads.values():
        open_parts: list[str | None] = [None]
        for point in sorted(points, key=lambda point: (point.time, point.what)):
            part = open_parts[-1]
            if point.what is _Moment.END:
                open_parts.pop()
            elif point.what is _Moment.BEGIN:
                open_parts.append(point.part or (inner.within(part) if inner else part))
            elif part is not None:
                total[part] += point.seconds
    return dict(total)


def _from_to(event: dict[str, Any], part: str | None = None) -> list[_Point]:
    """Beginning and end of a part, or of an operation."""
    start, end = event["ts"], event["ts"] + event["dur"]
    return [_Point(start, _Moment.BEGIN, part), _Point(end, _Moment.END)]
