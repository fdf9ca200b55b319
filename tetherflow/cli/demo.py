"""`tetherflow demo`: TetherCache beside FIFO, for the same prompt and seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tetherflow.cli.arguments import OutputFolder, Overrides, overrides
from tetherflow.cli.outcome import files_of

if TYPE_CHECKING:
    from tetherflow.recipe import Recipe

EXAMPLE: Final = "Example: tetherflow demo --seconds 60"
NEEDS_ARGUMENTS: Final = False


def command(
    seconds: Annotated[
        float, typer.Option(min=6.0, help="Length of each video; the figure needs 6 s.")
    ] = 30.0,
    changes: Overrides = None,
    output: OutputFolder = None,
) -> None:
    """Generate a video with TetherCache, the same with plain FIFO, and say how far each drifted.

    Prints the path of each video, then the distance of its last five seconds from its first five, in the
    feature space of `tetherflow drift`.
    """
    from tetherflow.recipe import load_recipe

    common = [f"rollout.seconds={seconds}", *overrides(changes, output)]
    recipes = {
        title: load_recipe(name, common) for title, name in (("TetherCache", "tethercache"), ("FIFO", "fifo"))
    }
    videos = {title: _generate(title, recipe) for title, recipe in recipes.items()}

    from tetherflow.evaluate.single import file_drift

    drift = {title: file_drift(video).drift for title, video in videos.items()}
    figures = ", ".join(f"{title} {figure:.3f}" for title, figure in drift.items())
    typer.echo(f"drift over {seconds:g} s: {figures} (last 5 s from first 5 s; 0 is none)")


def _generate(title: str, recipe: Recipe) -> Path:
    from tetherflow.rollout.batches import items_of
    from tetherflow.rollout.progress import RolloutProgress
    from tetherflow.rollout.run import run_recipe

    typer.echo(f"{title}: “{items_of(recipe)[0].prompt}”, seed {recipe.rollout.seed}", err=True)
    video = files_of(run_recipe(recipe, RolloutProgress()))[0]
    typer.echo(f"{title}: {video}")
    return video
