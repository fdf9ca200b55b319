"""Time by parts: on a GPU between events in its own stream, on the CPU by the clock."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, ParamSpec, Self, TypeVar

import attrs
import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_WARM_UP: Final = 3
_LEAST_REPEATS: Final = 5
_CALLS: Final = 10


def synchronise(device: torch.device) -> None:
    """Wait until a device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@attrs.define(eq=False)
class _Section:
    part: str
    start: torch.cuda.Event | float
    parent: _Section | None
    stop: torch.cuda.Event | float = 0.0

    def seconds(self) -> float:
        if isinstance(self.start, torch.cuda.Event) and isinstance(self.stop, torch.cuda.Event):
            return float(self.start.elapsed_time(self.stop)) / 1000
        return float(self.stop) - float(self.start)  # type: ignore[arg-type]


class PartWatch(ABC):
    """Measures named parts of what is done while it is entered."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None: ...

    @abstractmethod
    def part(self, name: str) -> AbstractContextManager[None]:
        """Count what happens within the block as a part."""

    @abstractmethod
    def seconds(self) -> dict[str, float]:
        """Each part's time, without that of its inner parts."""

    def wrap(self, name: str, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """The same function, whose calls count as a part."""

        def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            with self.part(name):
                return function(*args, **kwargs)

        return wrapped


class Stopwatch(PartWatch):
    """Measures named parts; what a part's inner parts take counts as theirs alone.

    Args:
        device: whose time is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sections: list[_Section] = []
        self._open: _Section | None = None

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        """Nothing to stop."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens within the block as a part."""
        section = self._open = _Section(name, self._mark(), self._open)
        try:
            yield
        finally:
            section.stop = self._mark()
            self._open = section.parent
            self._sections.append(section)

    def seconds(self) -> dict[str, float]:
        """Each part's time so far, without that of its inner parts."""
        synchronise(self._device)
        total: dict[str, float] = defaultdict(float)
        for section in self._sections:
            seconds = section.seconds()
            total[section.part] += seconds
            if section.parent is not None:
                total[section.parent.part] -= seconds
        return dict(total)

    def _mark(self) -> torch.cuda.Event | float:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def seconds_of(function: Callable[[], object], device: torch.device, budget: float = 0.2) -> float:
    """Median time of a call, over as many as fit into some seconds, after a warm-up.

    Args:
        function: what to call; on a GPU it is recorded (CUDA graphs), so that the host's launching, which may
            take longer, plays no part.
        device: where it computes.
        budget: seconds to spend.
    """
    for _ in range(_WARM_UP):
        function()
    calls = _CALLS if device.type == "cuda" else 1
    repeated = _recorded(function, calls) if device.type == "cuda" else function
    times: list[float] = []
    while sum(times) * calls < budget or len(times) < _LEAST_REPEATS:
        watch = Stopwatch(device)
        with watch.part(""):
            repeated()
        times.append(watch.seconds()[""] / calls)
    return statistics.median(times)


def _recorded(function: Callable[[], object], calls: int) -> Callable[[], object]:
    """Some calls of a function, recorded."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    return graph.replay
