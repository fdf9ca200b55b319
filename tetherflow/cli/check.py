"""`tetherflow check`: validate a recipe and print it resolved."""

from __future__ import annotations

from typing import Final

import typer

from tetherflow.cli.arguments import Overrides, RecipeName, overrides
from tetherflow.cli.outcome import show_advice

EXAMPLE: Final = "Example: tetherflow check my-recipe.yaml --set cache.regions.memory=12"
NEEDS_ARGUMENTS: Final = True


def command(recipe: RecipeName, changes: Overrides = None) -> None:
    """Check a recipe without running it, and print it with every default spelt out.

    What is printed is a recipe itself: it stands alone and extends nothing.
    """
    from tetherflow.recipe import advice_on, dump_recipe, load_recipe

    loaded = load_recipe(recipe, overrides(changes))
    show_advice(advice_on(loaded))
    typer.echo(dump_recipe(loaded), nl=False)
