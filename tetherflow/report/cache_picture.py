"""A picture of a cache over time: which frames a policy keeps, for how long, and in which region."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from tetherflow.errors import OutputError
from tetherflow.rollout.cache_trace import CacheTrace, Held

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS: Final[Mapping[str, str]] = {
    "sink": "#0072B2",
    "bank": "#CC79A7",
    "memory": "#E69F00",
    "recent": "#56B4E9",
    "chunk": "#000000",
    "changed": "#D55E00",
    "copied": "#009E73",
}
LABELS: Final[Mapping[str, str]] = {
    "sink": "sink",
    "bank": "bank: takes in what leaves",
    "memory": "memory",
    "recent": "recent",
    "chunk": "the chunk",
    "changed": "changed since it was written",
    "copied": "stands in for a later one",
}
REGIONS: Final = ("sink", "bank", "memory", "recent")
WHOLE: Final = 0.999
"""Share of a frame from which on it counts as whole."""
PALEST: Final = 0.25
"""Opacity of the smallest share of a frame; whole frames are opaque."""
DPI: Final = 150
SIZE: Final = (8.0, 4.4)
"""Of the picture in inches."""
TONES: Final = 48
"""Colours of the file, so that it stays small."""

Cells = npt.NDArray[np.float32]


def cache_picture(trace: CacheTrace, title: str) -> bytes:
    """Draw what a layer held after every chunk.

    Above, a column a chunk and a row a latent frame of the video, coloured by region; paler where only a
    part of the frame is held, or where it is blended with others. Below, how much each region holds.

    Args:
        trace: what was held; of one chunk at least.
        title: stands above.

    Returns:
        A PNG file of some 20 kB.

    Raises:
        OutputError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
    above.set_title(title, loc="left", fontsize=10, fontweight="bold")
    kinds = _draw_frames(above, trace)
    _draw_amounts(below, trace)
    _draw_switches(trace, above, below)
    _draw_legend(figure, kinds)
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    few = Image.open(drawn).convert("RGB").quantize(TONES, dither=Image.Dither.NONE)
    few.save(file, format="png", optimize=True)
    return file.getvalue()


def _draw_switches(trace: CacheTrace, above: Axes, below: Axes) -> None:
    """Draw a line where the prompt switches, and say above what the cache did."""
    for chunk, how in trace.switches.items():
        for axes in (above, below):
            axes.axvline(chunk - 0.5, color="0.35", linewidth=0.8, linestyle=(0, (4, 2)))
        at, text = (chunk - 0.5, 0.97), f" another prompt, {how} "
        side = "left" if chunk < len(trace.chunks) / 2 else "right"
        above.annotate(text, at, xycoords=("data", "axes fraction"), ha=side, va="top", fontsize=8)


def _draw_legend(figure: Figure, kinds: Mapping[str, bool]) -> None:
    """Name the kinds of cells that are there, and what pale ones are if there are any."""
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[kind], label=LABELS[kind]) for kind in COLOURS if kind in kinds]
    handles += [Patch(color="0.8", label="pale: a part of the frame")] * any(kinds.values())
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=8,
        frameon=False,
        handlelength=1,
        columnspacing=1.5,
    )


def require_matplotlib() -> None:
    """Prove that pictures can be drawn.

    Raises:
        OutputError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise OutputError(
            "pictures need matplotlib, which is not installed: pip install 'tetherflow[plot]'"
        ) from error


def _draw_frames(axes: Axes, trace: CacheTrace) -> dict[str, bool]:
    """Draw what is held of each frame; returns the kinds of cells there are, and whether some are pale."""
    chunks, frames = len(trace.chunks), len(trace.chunks) * trace.chunk_frames
    image, kinds = np.ones((frames, chunks, 3), np.float32), dict[str, bool]()
    for column, held in enumerate(trace.chunks):
        for kind, shares in cells_of(held, trace.layout.parts, frames).items():
            there = shares > 0
            if there.any():
                kinds[kind] = kinds.get(kind, False) or bool((shares[there] < WHOLE).any())
                opacity = (PALEST + (1 - PALEST) * shares[there, None]).clip(max=1)
                image[there, column] = (1 - opacity) * image[there, column] + opacity * _rgb(COLOURS[kind])
    axes.imshow(
        image,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, chunks - 0.5, -0.5, frames - 0.5),
    )
    axes.set_ylabel("latent frame", fontsize=9)
    axes.tick_params(labelsize=8)
    return kinds


def _draw_amounts(axes: Axes, trace: CacheTrace) -> None:
    """Draw how many frames' worth each region holds, stacked."""
    chunks, parts = np.arange(len(trace.chunks)), trace.layout.parts
    base = np.zeros(len(chunks))
    for region in (*REGIONS, "chunk"):
        units = [len(held.chunk if region == "chunk" else _past(held, region)) for held in trace.chunks]
        axes.bar(chunks, amount := np.array(units) / parts, 1.0, base, color=COLOURS[region], linewidth=0)
        base += amount
    budget = trace.layout.budget // parts
    axes.set_ylim(0, budget * 1.12)
    axes.set_yticks([0, budget])
    axes.set_ylabel("frames held", fontsize=9)
    axes.set_xlabel(
        f"chunk of {trace.chunk_frames} latent frames, {trace.chunk_seconds:g} s of video", fontsize=9
    )
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", integer=True)


def cells_of(held: Held, parts: int, frames: int) -> dict[str, Cells]:
    """What share of each of a video's latent frames is held as what, float32 `[frames]` by kind.

    In the order in which they are drawn, one over the other.

    Args:
        held: what is held.
        parts: units of a frame.
        frames: latent frames of the video.
    """
    cells = {kind: np.zeros(frames, np.float32) for kind in ("copied", "changed", *COLOURS)}
    kinds = {rank: name for name in REGIONS for rank in _past(held, name)}
    for rank, origin in enumerate(held.origins):
        kind = kinds.get(rank, "chunk")
        if rank in held.changed and kind != "bank":
            kind = "changed"
        cells[kind][origin // parts] += 1 / parts
        for source, share in held.contents.get(rank, {}).items():
            what = "copied" if share == 1 else "changed"
            if source != origin:
                cells[what][source // parts] += share / parts
    return cells


def _past(held: Held, region: str) -> range:
    """Ranks of a region's units, the chunk's left out."""
    ranks: range = getattr(held.regions, region)
    return range(ranks.start, min(ranks.stop, held.chunk.start))


def _rgb(colour: str) -> npt.NDArray[np.float32]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)
