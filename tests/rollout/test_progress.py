"""Progress: chunks, video frames a second, and the time left."""

from __future__ import annotations

import io
import pickle

from rich.console import Console

from tetherflow.rollout.progress import RolloutProgress


def test_plain_lines_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    progress = RolloutProgress(console=Console(file=text, width=100))
    progress.start(40)
    for _ in range(40):
        progress.chunk(0.5, 12, "video 1")
    progress.stop()
    assert text.getvalue() == "video 1: chunk 40/40, 24.0 frames/s, 0:00:00 left\n"


def test_bar_on_a_terminal() -> None:
    text = io.StringIO()
    progress = RolloutProgress(console=Console(file=text, width=100, force_terminal=True))
    progress.start(40)
    for _ in range(10):
        progress.chunk(0.5, 12, "video 1")
    progress.stop()
    assert "chunk 10/40" in text.getvalue()
    assert "24.0 frames/s, 0:00:15 left" in text.getvalue()


def test_speed_is_that_of_recent_chunks() -> None:
    text = io.StringIO()
    progress = RolloutProgress(console=Console(file=text, width=100))
    progress.start(50)
    progress.chunk(1000.0, 12, "video 1")
    for _ in range(49):
        progress.chunk(0.25, 12, "video 1")
    assert "48.0 frames/s" in text.getvalue()


def test_silent_and_picklable() -> None:
    silent = RolloutProgress(enabled=False)
    silent.start(3)
    silent.chunk(1, 1, "video 1")
    silent.stop()
    assert pickle.dumps(RolloutProgress())  # it travels to spawned processes
