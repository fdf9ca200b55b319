"""`tetherflow fetch`: download a backbone's published weights, or check those that are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from tetherflow.weights.fetch import Fetched

EXAMPLE: Final = "Example: tetherflow fetch self-forcing --folder /data/weights"
NEEDS_ARGUMENTS: Final = True


def command(
    backbone: Annotated[
        str,
        typer.Argument(metavar="BACKBONE", help="A backbone, as recipes name it.", show_default=False),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Folder of weights; $TETHERFLOW_WEIGHTS or ~/.cache/tetherflow/weights if omitted.",
            show_default=False,
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Check the files that are there and download nothing.")
    ] = False,
) -> None:
    """Download the weights that a backbone runs with, at pinned revisions, and check sizes and hashes.

    Files that are in the folder already are only checked, so weights may also be put there by hand, under
    OWNER/REPOSITORY/PATH as on the Hugging Face Hub. A download that was cut off goes on where it stopped.
    """
    from tetherflow.plugins import load_backbone
    from tetherflow.weights import weights_folder
    from tetherflow.weights.fetch import carry_out, in_words, plan

    files = load_backbone(backbone).published_files()
    if not files:
        typer.echo(f"{backbone} brings its weights along; there is nothing to fetch", err=True)
        return
    found = plan(files, (folder or weights_folder()).expanduser().absolute(), offline)
    typer.echo(f"{backbone}: {len(files)} files in {found.folder}", err=True)
    if found.missing:
        need, free = in_words(found.download_bytes), in_words(found.free_bytes)
        there = {"an earlier try": found.begun_bytes, "huggingface_hub's own cache": found.cached_bytes}
        besides = " and ".join(f"{in_words(count)} from {where}" for where, count in there.items() if count)
        besides = f" besides {besides}" if besides else ""
        typer.echo(f"to download: {len(found.missing)} files, {need}{besides} ({free} free)", err=True)
    carry_out(found, _report)


def _report(fetched: Fetched) -> None:
    if not fetched.checked:
        typer.echo(f"{fetched.file.name}: no hash is published to check it against", err=True)
    typer.echo(fetched.path)
