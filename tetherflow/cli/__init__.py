"""The `tetherflow` command; one module a subcommand."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tetherflow.cli import bench, check, demo, drift, fetch, new_policy, picture, plugins, replay, run, schema
from tetherflow.errors import StageError, TetherflowError

app = typer.Typer(
    name="tetherflow",
    help="Generate minutes of video without drift, by pluggable cache policies.",
    epilog="Example: tetherflow run quickstart --set rollout.seconds=5",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (run, check, demo, fetch, picture, plugins, new_policy, schema, replay, drift, bench):
    name = module.__name__.rpartition(".")[2].replace("_", "-")
    app.command(name, epilog=module.EXAMPLE, no_args_is_help=module.NEEDS_ARGUMENTS)(module.command)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Generate minutes of video without drift, by pluggable cache policies."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    The exit code is 0 after success, 2 for bad input, 1 for a failure, and 128 plus the signal's number after
    an interruption.

    Args:
        arguments: the words after the program's name; those of the process if omitted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        app(words)
    except TetherflowError as error:
        if "--debug" in words:
            traceback.print_exc()
        else:
            show_error(error)
        sys.exit(exit_code(error))


def show_error(error: TetherflowError) -> None:
    """Print an error's message to standard error, in red where there is a terminal."""
    console = Console(stderr=True)
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    console.print(Text(f"error: {error}{notes}", style="red"), soft_wrap=True)


def exit_code(error: TetherflowError) -> int:
    """1 if the run failed, 2 if what it was given is at fault."""
    return 1 if isinstance(error, StageError) or type(error) is TetherflowError else 2
