"""`tetherflow drift`: how much of their quality policies lose over time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tetherflow.cli.arguments import Overrides
from tetherflow.files import write_whole

if TYPE_CHECKING:
    from tetherflow.recipe import Recipe

EXAMPLE: Final = "Example: tetherflow drift fifo tethercache --horizons 30,60 --prompts 16 --output drift"
NEEDS_ARGUMENTS: Final = False
RECIPES: Final = (
    "fifo",
    "fifo-relative",
    "sink-window",
    "tethercache-no-tame",
    "grab-no-diversity",
    "tethercache",
)
_DECIDED: Final = {
    "rollout.prompts": "--prompts-file",
    "rollout.prompts_file": "--prompts-file",
    "rollout.seconds": "--horizons",
    "rollout.latent_frames": "--horizons",
    "rollout.seed": "--seed",
    "rollout.samples": "--prompts",
    "rollout.first_frames": None,
    "runtime.batch_size": "--batch-size",
    "output.folder": "--output",
    "output.name": None,
}
"""What this command decides for all recipes alike, and the option to do it with."""


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
    horizons: Annotated[
        str, typer.Option(metavar="SECONDS,...", help="Where the last 5 s end; one or more.")
    ] = "30,60,240",
    prompts: Annotated[
        int, typer.Option(min=2, metavar="N", help="How many of the backbone's held-out prompts to use.")
    ] = 32,
    prompts_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts of your own instead, one a line.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all noise.")] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Videos that are generated together.")
    ] = 8,
    reference_clips: Annotated[
        int,
        typer.Option(
            min=2, metavar="N", help="Held-out real clips of each prompt that quality is judged against."
        ),
    ] = 16,
    time_chunks: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Chunks to time each recipe over, beside the first: 28 or more, or 0."
        ),
    ] = 40,
    changes: Overrides = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the figures go, and what is kept to go on from.")
    ] = Path("runs/drift"),
) -> None:
    """Measure drift: the quality of a video's last seconds less that of its first.

    Every recipe makes a video for every prompt, with the same noise; no video is kept. Then each is timed in
    turns with the first. The figures, each with a 95 % interval, are printed and written to drift.json and
    drift.md. An interrupted measurement goes on where it stopped when the same command is run again.
    """
    wanted = _horizons(horizons)
    _check_changes(changes or [])
    names = recipes or list(RECIPES)

    from tetherflow.recipe import load_recipe, read_prompts

    own = None if prompts_file is None else read_prompts(prompts_file)
    loaded = [load_recipe(name, changes or []) for name in names]

    # Lightning takes seconds to import; a mistake in the arguments should not wait for it.
    from rich.console import Console

    from tetherflow.evaluate.drift import measure_drift, plan_windows, with_prompts
    from tetherflow.report.drift_page import drift_json, drift_page, terminal_costs, terminal_table
    from tetherflow.report.provenance import Provenance
    from tetherflow.rollout.open_session import Backbones, first_device
    from tetherflow.rollout.progress import RolloutProgress
    from tetherflow.rollout.writers import require_writable

    def measured(shown: list[str]) -> list[Recipe]:
        return [
            with_prompts(recipe, shown, seconds=max(wanted), seed=seed, batch_size=batch_size)
            for recipe in loaded
        ]

    plan_windows(measured([])[0], wanted)
    require_writable(output, "--output")
    backbones, device = Backbones(), first_device(loaded[0])
    try:
        shown = own or backbones.of(loaded[0], device).sample_prompts(prompts)
        if own is None and (different := len(set(shown))) < prompts:
            raise typer.BadParameter(
                f"of the backbone's first {prompts} held-out prompts {different} differ; give fewer, or a "
                "--prompts-file",
                param_hint="--prompts",
            )
        report = measure_drift(
            measured(shown),
            wanted,
            output / "statistics",
            reference_clips=reference_clips,
            time_chunks=time_chunks,
            backbones=backbones,
            progress=RolloutProgress,
        )
    except KeyboardInterrupt:
        kept = f"what was measured is kept in {output}, and the same command goes on from there"
        Console(stderr=True).print(f"interrupted; {kept}", style="yellow", soft_wrap=True)
        sys.exit(130)
    source = ["--prompts", str(prompts)] if prompts_file is None else ["--prompts-file", str(prompts_file)]
    numbers = {"--seed": seed, "--batch-size": batch_size, "--reference-clips": reference_clips}
    numbers["--time-chunks"] = time_chunks
    words = ["tetherflow", "drift", *names, "--horizons", horizons, *source]
    words += [word for option, number in numbers.items() for word in (option, str(number))]
    words += [word for change in changes or [] for word in ("--set", change)]
    provenance = Provenance.here(words, device=device)
    write_whole(output / "drift.json", drift_json(report, provenance))
    write_whole(output / "drift.md", drift_page(report, provenance))
    console = Console()
    console = console if console.is_terminal else Console(width=180)
    console.print(terminal_table(report))
    if costs := terminal_costs(report):
        console.print(costs)
    typer.echo(output / "drift.md")
    typer.echo(output / "drift.json")


def _horizons(text: str) -> list[float]:
    try:
        return sorted(float(word) for word in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"'{text}' is no list of seconds, such as 30,60,240", param_hint="--horizons"
        ) from error


def _check_changes(changes: list[str]) -> None:
    for change in changes:
        key = change.partition("=")[0].strip()
        if key in _DECIDED:
            instead = f"; use {_DECIDED[key]}" if _DECIDED[key] else ""
            raise typer.BadParameter(
                f"{key} is the same for all recipes that are compared{instead}", param_hint="--set"
            )
