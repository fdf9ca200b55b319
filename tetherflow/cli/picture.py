"""`tetherflow picture`: what a policy keeps, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from tetherflow.cli.arguments import Overrides, RecipeName

EXAMPLE: Final = "Example: tetherflow picture tethercache --chunks 60 --output tethercache.png"
NEEDS_ARGUMENTS: Final = True


def command(
    recipe: RecipeName,
    chunks: Annotated[int, typer.Option(min=1, metavar="N", help="Chunks to generate.")] = 48,
    layer: Annotated[
        int | None,
        typer.Option(metavar="L", help="The transformer's layer, from 0; the middle one if omitted."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The PNG file; the recipe's name if omitted.", show_default=False),
    ] = None,
    changes: Overrides = None,
) -> None:
    """Draw which frames a recipe's policy keeps, for how long, and where.

    Generates latents of the recipe's first video, without decoding, and draws what one layer's cache holds
    after each chunk: a row a latent frame, coloured by region. The recipe's length and given first frames
    play no part. Needs matplotlib, which the extra `plot` installs.
    """
    from tetherflow.recipe import load_recipe

    loaded = load_recipe(recipe, changes or [])
    name = str(loaded.output.name)
    file = output or Path(f"{name}.png")

    # Torch takes seconds to import; a mistake in the arguments should not wait for it.
    from rich.console import Console
    from rich.progress import Progress

    from tetherflow.errors import OutputError
    from tetherflow.files import write_whole
    from tetherflow.report.cache_picture import cache_picture, require_matplotlib
    from tetherflow.rollout.cache_trace import trace_cache
    from tetherflow.rollout.writers import require_writable

    if file.suffix != ".png":
        raise OutputError(f"cannot write {file}: the name of a picture must end in .png")
    require_matplotlib()
    require_writable(file.absolute().parent, "--output")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=chunks)
        trace = trace_cache(loaded, chunks, layer, lambda: progress.advance(task))
    write_whole(file, cache_picture(trace, f"{name}, layer {trace.layer}"))
    typer.echo(file)
