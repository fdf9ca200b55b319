"""What commands say before and after a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from tetherflow.rollout.run import RunResult


def files_of(result: RunResult) -> list[Path]:
    """The videos of a run; if it was interrupted, says so and exits with 128 plus the signal's number."""
    files = [result.folder.path / video.file for video in result.videos if video.file is not None]
    if result.signal is not None:
        for file in files:
            typer.echo(file)
        kept = f"what was generated plays: {result.folder.path}" if files else "nothing was generated yet"
        Console(stderr=True).print(f"interrupted; {kept}", style="yellow", soft_wrap=True)
        sys.exit(128 + result.signal)
    return files


def show_advice(advice: Iterable[str]) -> None:
    """Print what speaks against a recipe, which runs all the same, to standard error."""
    for sentence in advice:
        Console(stderr=True).print(Text(f"warning: {sentence}", style="yellow"), soft_wrap=True)
