"""`tetherflow run`: generate a recipe's videos."""

from __future__ import annotations

from typing import Final

import typer

from tetherflow.cli.arguments import OutputFolder, Overrides, RecipeName, overrides
from tetherflow.cli.outcome import files_of, show_advice

EXAMPLE: Final = (
    "Example: tetherflow run tethercache --set rollout.seconds=60 --set rollout.seed=7 --output videos"
)
NEEDS_ARGUMENTS: Final = True


def command(recipe: RecipeName, changes: Overrides = None, output: OutputFolder = None) -> None:
    """Generate the videos of a recipe into a new run folder.

    The folder holds the videos, the resolved recipe, a lock of everything the run depended on, a log, and the
    results. Run its recipe.yaml to make the videos again.
    """
    from tetherflow.recipe import advice_on, latent_frames_of, load_recipe

    loaded = load_recipe(recipe, overrides(changes, output))
    show_advice(advice_on(loaded))
    videos = len(loaded.rollout.prompts) * loaded.rollout.samples
    counted = f"{videos} video{'s' * (videos > 1)} of {latent_frames_of(loaded)} latent frames"
    typer.echo(f"{loaded.output.name}: {counted}", err=True)

    # Lightning takes seconds to import; a mistake in the recipe should not wait for it.
    from tetherflow.rollout.progress import RolloutProgress
    from tetherflow.rollout.run import run_recipe

    for file in files_of(run_recipe(loaded, RolloutProgress())):
        typer.echo(file)
