"""`tetherflow bench`: what a policy costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tetherflow.cli.arguments import Overrides
from tetherflow.cli.files import write_whole

if TYPE_CHECKING:
    from rich.table import Table

    from tetherflow.rollout.bench import Timing

EXAMPLE: Final = "Example: tetherflow bench fifo tethercache --chunks 100 --json bench.json"
NEEDS_ARGUMENTS: Final = False
RECIPES: Final = ("fifo-relative", "fifo", "tethercache")


def command(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE...",
            help="Recipe files or names of shipped recipes; the first is what the others are compared with. "
            f"If none is named: {' '.join(RECIPES)}.",
            show_default=False,
        ),
    ] = None,
    chunks: Annotated[int, typer.Option(min=30, metavar="N", help="Chunks to generate with each.")] = 300,
    changes: Overrides = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures as JSON too.", show_default=False),
    ] = None,
) -> None:
    """Time recipes against each other, chunk by chunk, without decoding.

    They take turns in one process, so a busy machine slows all alike. A chunk's time late in the video beside
    that of an early one shows whether it grows with length.
    """
    from tetherflow.recipe import load_recipe

    names = recipes or list(RECIPES)
    loaded = [load_recipe(name, changes or []) for name in names]

    # Torch takes seconds to import; a mistake in the arguments should not wait for it.
    import attrs
    from rich.console import Console
    from rich.progress import Progress

    from tetherflow.report.provenance import Provenance
    from tetherflow.rollout.batches import threads_of
    from tetherflow.rollout.bench import compare
    from tetherflow.rollout.open_session import first_device
    from tetherflow.rollout.writers import require_writable

    if json_file is not None:
        require_writable(json_file.absolute().parent)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("chunks", total=chunks)
        timings = compare(loaded, chunks, lambda: progress.advance(task))
    words = ["tetherflow", "bench", *names, "--chunks", str(chunks)]
    words += [word for change in changes or [] for word in ("--set", change)]
    provenance = Provenance.here(words, device=first_device(loaded[0]))
    data = {
        "provenance": attrs.asdict(provenance),
        "threads": threads_of(loaded[0]),
        "timings": [attrs.asdict(timing) for timing in timings],
    }
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(_table(timings))
    console.print(
        f"{provenance.machine}; {timings[0].device}, {timings[0].dtype}, {data['threads']} threads; "
        f"torch {provenance.versions['torch']}; {provenance.date}",
        highlight=False,
        soft_wrap=True,
    )
    if json_file is not None:
        write_whole(json_file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        typer.echo(json_file)


def _table(timings: list[Timing]) -> Table:
    from rich.table import Table

    table = Table(header_style="bold", pad_edge=False)
    last = f"chunk {timings[0].chunks}"
    for heading in ("policy", "chunk", f"ratio to {timings[0].name}", "chunk 10", last, "frames/s", "cache"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for timing in timings:
        table.add_row(
            timing.name,
            f"{1000 * timing.chunk_seconds:.1f} ms",
            f"{timing.ratio:.3f} [{timing.ratio_low:.3f}, {timing.ratio_high:.3f}]".replace("[", r"\["),
            f"{1000 * timing.early:.1f} ms",
            f"{1000 * timing.late:.1f} ms",
            f"{timing.frames_per_second:.1f}",
            f"{timing.cache_bytes / 2**20:.1f} MiB",
        )
    return table
