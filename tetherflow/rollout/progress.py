"""Progress of a run on the terminal, or as plain lines where there is none."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_RECENT = 16  # chunks over which speed is averaged
_LINE_SECONDS = 5.0


class RolloutProgress:
    """Shows chunks done, video frames a second and the time left.

    It is made in one process and may be used in another: the display starts with the first chunk.

    Args:
        enabled: whether to show anything.
        console: where; standard error if omitted, so that standard output stays the program's result.
    """

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        self.enabled = enabled
        self._console = console
        self._total = self._done = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._bar: Progress | None = None
        self._last_line = 0.0

    def start(self, chunks: int) -> None:
        """Begin to count.

        Args:
            chunks: how many chunks this process is to make, all its batches together.
        """
        if not self.enabled:
            return
        self._console = self._console or Console(stderr=True)
        self._total, self._last_line = chunks, time.monotonic()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("chunk {task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[speed]}"),
                console=self._console,
            )
            self._bar.add_task("generating", total=chunks, speed="")
            self._bar.start()

    def chunk(self, seconds: float, frames: int, label: str) -> None:
        """Count one chunk.

        Args:
            seconds: wall time it took.
            frames: video frames it gave, over all videos of the batch.
            label: which videos it belongs to, in words.
        """
        if not self.enabled or self._console is None:
            return
        self._done += 1
        self._recent.append((seconds, frames))
        spent = sum(took for took, _ in self._recent)
        rate = sum(count for _, count in self._recent) / max(spent, 1e-9)
        left = timedelta(seconds=round((self._total - self._done) * spent / len(self._recent)))
        speed = f"{rate:.1f} frames/s, {left} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=label, speed=speed)
        elif time.monotonic() - self._last_line >= _LINE_SECONDS or self._done == self._total:
            self._last_line = time.monotonic()
            self._console.print(f"{label}: chunk {self._done}/{self._total}, {speed}", highlight=False)

    def stop(self) -> None:
        """End the display."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
