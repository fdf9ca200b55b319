"""Another implementation: every step is a chunk that does nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tetherflow.bench import Workload

WORKLOADS: list[Workload] = []
NUMBER = 3


def instant(work: Workload) -> Iterator[object]:
    """As many chunks as it is asked for."""
    WORKLOADS.append(work)
    yield from range(work.chunks)


def lazy(work: Workload) -> Iterator[object]:
    """Two chunks too few."""
    yield from range(work.chunks - 2)
