"""`tetherflow plugins`: what is installed, and where it comes from."""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

EXAMPLE: Final = "Example: tetherflow plugins --json"
NEEDS_ARGUMENTS: Final = False


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the backbones and stage plugins that recipes can use, with the package each comes from."""
    import attrs

    from tetherflow.plugins import list_plugins

    found = list_plugins()
    if as_json:
        typer.echo(json.dumps([attrs.asdict(plugin) for plugin in found], indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "stage", "from", "what it does"):
        table.add_column(heading, overflow="fold")
    for plugin in found:
        says = Text(plugin.summary) if plugin.error is None else Text(plugin.error, style="red")
        source = f"{plugin.distribution} {plugin.version}"
        table.add_row(plugin.name, plugin.stage or "broken", source, says)
    Console().print(table)
