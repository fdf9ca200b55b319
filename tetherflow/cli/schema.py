"""`tetherflow schema`: the JSON schema of a recipe file."""

from __future__ import annotations

import json
from typing import Final

import typer

EXAMPLE: Final = "Example: tetherflow schema > recipe.schema.json"
NEEDS_ARGUMENTS: Final = False


def command() -> None:
    """Print the JSON schema of a recipe file, with the options of every installed plugin, for editors.

    In an editor with a YAML language server, begin a recipe with
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from tetherflow.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
