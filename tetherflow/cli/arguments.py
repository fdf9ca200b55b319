"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value, such as stages.edit.0.tau=0.35; may be given several times.",
        show_default=False,
    ),
]
OutputFolder = Annotated[
    Path | None,
    typer.Option(
        "--output", metavar="DIR", help="Where run folders go; ./runs if omitted.", show_default=False
    ),
]


def overrides(values: list[str] | None, output: Path | None = None) -> list[str]:
    """The `--set` values, with the output folder as one more."""
    quoted = str(output).replace("'", "''") if output is not None else ""
    return [*(values or []), *([f"output.folder='{quoted}'"] if output is not None else [])]
