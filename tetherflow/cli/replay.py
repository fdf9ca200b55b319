"""`tetherflow replay`: compare the engine with recorded rollouts."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

EXAMPLE: Final = "Example: tetherflow replay tests/golden --numerics parity"
NEEDS_ARGUMENTS: Final = True


class Numerics(StrEnum):
    """Order of operations."""

    PARITY = "parity"
    FAST = "fast"


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of golden traces.", show_default=False)
    ],
    numerics: Annotated[
        Numerics, typer.Option(help="parity follows the published code's order of operations.")
    ] = Numerics.PARITY,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest difference that passes; by default the mode's own.", show_default=False),
    ] = None,
) -> None:
    """Replay recorded rollouts ("golden traces") and print each one's largest error.

    The exit code is 1 if one is past the tolerance or recalls another frame.
    """
    from tetherflow.testing.replay import replay_folder

    passed = True
    for replay in replay_folder(folder, numerics.value, tolerance):
        passed &= replay.passed
        frames = "same frames recalled" if replay.memory else "OTHER FRAMES RECALLED"
        typer.echo(
            f"{'pass' if replay.passed else 'FAIL'}  {replay.name:<28} largest error {replay.error:.2e} "
            f"(allowed {replay.tolerance:.0e}), {frames}"
        )
    if not passed:
        sys.exit(1)
