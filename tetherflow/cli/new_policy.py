"""`tetherflow new-policy`: write a package for a policy of one's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

EXAMPLE: Final = "Example: tetherflow new-policy small-keys --stage score"
NEEDS_ARGUMENTS: Final = True


class StageKind(StrEnum):
    """Which of the stages."""

    SCORE = "score"
    SELECT = "select"
    EDIT = "edit"
    EVICT = "evict"
    MERGE = "merge"


def command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What recipes will call it.", show_default=False)
    ],
    stage: Annotated[StageKind, typer.Option(help="Which stage it is.")] = StageKind.SCORE,
    folder: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where its folder is made.", file_okay=False, exists=True),
    ] = Path(),
) -> None:
    """Write a complete package for a cache policy: plugin, tests, recipe, README.

    It can be installed, tested and run at once; then change what it does.
    """
    from tetherflow.scaffold import PolicyNames, write_package

    names = PolicyNames.of(name)
    written = write_package(names, stage.value, folder)
    typer.echo(written)
    steps = (
        f"cd {written} && pip install -e '.[test]' && pytest && tetherflow run recipes/{names.plugin}.yaml"
    )
    typer.echo(f"next: {steps}", err=True)
