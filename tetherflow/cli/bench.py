"""`tetherflow bench`: what a policy costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tetherflow.cli.arguments import Overrides
from tetherflow.files import write_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tetherflow.bench import Details, Timing

EXAMPLE: Final = "Example: tetherflow bench fifo-relative tethercache --random-weights --json bench.json"
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
    chunks: Annotated[int, typer.Option(min=28, metavar="N", help="Chunks to generate with each.")] = 300,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Take Wan2.1-T2V-1.3B's shapes at random weights, whatever the recipes' backbone.",
        ),
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Time another implementation beside the recipes, see docs/benchmarks.md; may be repeated.",
            show_default=False,
        ),
    ] = None,
    chunks_only: Annotated[
        bool,
        typer.Option("--chunks-only", help="Leave out floors, parts, video and memory."),
    ] = False,
    changes: Overrides = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures as JSON too.", show_default=False),
    ] = None,
) -> None:
    """Time recipes against each other, and say where the time goes.

    Chunks are timed without decoding; the recipes take turns in one process, so a busy machine slows all
    alike. A chunk's time late in the video beside that of an early one shows whether it grows with length.
    Then, for each recipe: attention and matrix products alone on this device, which is the floor; the parts
    of a chunk; and video to a file, with decoding and encoding.
    """
    from tetherflow.recipe import load_recipe

    names = recipes or list(RECIPES)
    overrides = [*(["backbone.use=synthetic"] if random_weights else []), *(changes or [])]
    loaded = [load_recipe(name, overrides) for name in names]

    # Torch takes seconds to import; a mistake in the arguments should not wait for it.
    import attrs
    from rich.console import Console
    from rich.progress import Progress

    from tetherflow.bench import compare, load_implementation, measure_details
    from tetherflow.report.provenance import Provenance
    from tetherflow.rollout.batches import threads_of
    from tetherflow.rollout.open_session import Backbones, first_device
    from tetherflow.rollout.writers import require_writable

    rivals = {reference: load_implementation(reference) for reference in against or []}
    if json_file is not None:
        require_writable(json_file.absolute().parent, "--json")
    backbones = Backbones()
    measured = [] if chunks_only else loaded
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("chunks", total=chunks + len(measured))
        timings = compare(loaded, chunks, lambda: progress.advance(task), rivals=rivals, backbones=backbones)
        details = []
        for recipe in measured:
            progress.update(task, description=f"{recipe.output.name}: floors, parts, video")
            details.append(measure_details(recipe, backbones))
            progress.advance(task)
    words = ["tetherflow", "bench", *names, "--chunks", str(chunks)]
    words += ["--random-weights"] * random_weights + ["--chunks-only"] * chunks_only
    words += [word for reference in rivals for word in ("--against", reference)]
    words += [word for change in changes or [] for word in ("--set", change)]
    provenance = Provenance.here(words, device=first_device(loaded[0]))
    data = {
        "provenance": attrs.asdict(provenance),
        "threads": threads_of(loaded[0]),
        "timings": [attrs.asdict(timing) for timing in timings],
        "details": [attrs.asdict(each) for each in details],
    }
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    _show(console, timings, details)
    console.print(
        f"{provenance.machine}; {timings[0].device}, {timings[0].dtype}, {data['threads']} threads; "
        f"torch {provenance.versions['torch']}; {provenance.date}",
        highlight=False,
        soft_wrap=True,
    )
    if json_file is not None:
        write_whole(json_file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        typer.echo(json_file)


def _show(console: Console, timings: list[Timing], details: list[Details]) -> None:
    console.print(_times(timings))
    if details:
        console.print(_parts(details), _floors(details), _videos(details), sep="\n")


def _table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    return table


def _times(timings: list[Timing]) -> Table:
    from tetherflow.bench import STEADY

    headings = ("policy", "chunk", f"ratio to {timings[0].name}", f"chunk {STEADY}")
    last = f"chunk {timings[0].chunks}"
    table = _table("Denoising and context passes", *headings, last, "frames/s", "cache", "attention")
    for timing in timings:
        table.add_row(
            timing.name,
            _ms(timing.chunk_seconds),
            f"{timing.ratio:.3f} [{timing.ratio_low:.3f}, {timing.ratio_high:.3f}]".replace("[", r"\["),
            _ms(timing.early),
            _ms(timing.late),
            f"{timing.frames_per_second:.1f}",
            f"{timing.cache_bytes / 2**20:.1f} MiB" if timing.cache_bytes else "",
            timing.attention,
        )
    return table


def _parts(details: list[Details]) -> Table:
    title = "Parts of a steady chunk; on a CPU products are timed apart, and glue is what is left"
    table = _table(title, "policy", *details[0].parts, "all")
    for each in details:
        total = sum(each.parts.values())
        cells = [f"{_ms(seconds)} {seconds / total:.1%}" for seconds in each.parts.values()]
        table.add_row(each.name, *cells, _ms(total))
    return table


def _floors(details: list[Details]) -> Table:
    title = "Attention and products alone; the floor is the sum of those that the recipe uses (*)"
    table = _table(title, "policy", "operation", "kernel", "TFLOP/s", "chunk")
    for each in details:
        for operation in each.roofline.operations:
            kernel = operation.kernel + " *" * operation.own
            figures = (f"{operation.teraflops:.3g}", _ms(operation.seconds))
            table.add_row(each.name, operation.what, kernel, *figures)
        table.add_row(each.name, "floor", "", "", _ms(each.roofline.seconds), end_section=True)
    return table


def _videos(details: list[Details]) -> Table:
    headings = ("first frame", "frames/s", "decoding", "copying", "encoding", "peak, latents only", "peak")
    table = _table("From the prompt to an MP4 file", "policy", *headings)
    for each in details:
        whole = each.whole
        table.add_row(
            each.name,
            f"{whole.first_frame_seconds:.2f} s",
            f"{whole.frames_per_second:.1f}",
            _ms(whole.decode_seconds),
            _ms(whole.copy_seconds),
            _ms(whole.encode_seconds),
            _gib(whole.transformer_bytes),
            _gib(whole.peak_bytes),
        )
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 0.1 else f"{1000 * seconds:.1f} ms"


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f} GiB"
