"""A GPU's time by parts, from the profiler: how long kernels run, whoever waits for whom."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import attrs
import torch
from torch.profiler import ProfilerActivity, profile, record_function

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_PREFIX: Final = "tetherflow part: "
_ON_DEVICE: Final = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES: Final = ("cuda_runtime", "cuda_driver")


class KernelWatch:
    """Measures named parts; what a part's inner parts launch counts as theirs alone.

    Use it as a context manager around the work; the parts are known once it is left.
    """

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> KernelWatch:
        self._profile.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        torch.cuda.synchronize()
        self._profile.__exit__(kind, error, trace)
        if kind is None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace.json"
                self._profile.export_chrome_trace(str(path))
                self._seconds = seconds_by_part(json.loads(path.read_text())["traceEvents"])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is launched within the block as a part."""
        with record_function(_PREFIX + name):
            yield

    def wrap(self, name: str, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """The same function, whose calls count as a part."""

        def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            with self.part(name):
                return function(*args, **kwargs)

        return wrapped

    def seconds(self) -> dict[str, float]:
        """How long the device was busy for each part, without its inner parts."""
        return dict(self._seconds)


@attrs.frozen
class _Point:
    """A moment on the host: 0 a part ends, 1 one begins, 2 something is launched."""

    time: float
    what: int
    name: str = ""
    seconds: float = 0.0


def seconds_by_part(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """How long the device was busy for each part of a trace.

    Args:
        events: of a Chrome trace by torch's profiler, times in microseconds. A kernel belongs to the
            innermost part in which its thread launched it.
    """
    durations: dict[int, float] = {}
    threads: dict[object, list[_Point]] = defaultdict(list)
    launches: list[tuple[object, float, int]] = []
    for event in events:
        kind, args = event.get("cat"), event.get("args", {})
        if kind in _ON_DEVICE and "correlation" in args:
            durations[args["correlation"]] = durations.get(args["correlation"], 0.0) + event["dur"] / 1e6
        elif kind in _LAUNCHES and "correlation" in args:
            launches.append((event["tid"], event["ts"], args["correlation"]))
        elif kind == "user_annotation" and event["name"].startswith(_PREFIX):
            name = event["name"].removeprefix(_PREFIX)
            threads[event["tid"]].append(_Point(event["ts"], 1, name))
            threads[event["tid"]].append(_Point(event["ts"] + event["dur"], 0, name))
    for thread, moment, correlation in launches:
        threads[thread].append(_Point(moment, 2, seconds=durations.get(correlation, 0.0)))
    total: dict[str, float] = defaultdict(float)
    for points in threads.values():
        open_parts: list[str] = []
        for point in sorted(points, key=lambda point: (point.time, point.what)):
            if point.what == 1:
                open_parts.append(point.name)
            elif point.what == 0:
                open_parts.pop()
            elif open_parts:
                total[open_parts[-1]] += point.seconds
    return dict(total)
