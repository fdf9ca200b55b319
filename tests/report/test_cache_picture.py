"""The picture of a cache over time."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from tetherflow.cache import Layout
from tetherflow.cache.layout import Regions
from tetherflow.errors import OutputError
from tetherflow.report.cache_picture import COLOURS, cache_picture, cells_of
from tetherflow.rollout.cache_trace import CacheTrace, Held

# Units of half a frame: frame 0 in the sink, half of 2 in memory, 3 with something of 4, and the chunk.
HELD = Held(
    origins=(0, 1, 5, 6, 7, 16, 17),
    regions=Regions(range(2), range(2, 2), range(2, 5), range(5, 7)),
    chunk=range(5, 7),
    changed=frozenset({3, 4}),
    contents={3: {6: 0.5, 8: 0.5}},
)


def trace(*chunks: Held, switches: dict[int, str] | None = None) -> CacheTrace:
    return CacheTrace(1, Layout(2, 3, 4, parts=2), 1, 0.25, chunks, switches or {})


def shares(held: Held) -> dict[str, dict[int, float]]:
    cells = cells_of(held, 2, 9)
    return {
        kind: {int(i): float(row[i]) for i in np.flatnonzero(row)} for kind, row in cells.items() if row.any()
    }


def test_cells_say_how_much_of_a_frame_is_held_and_as_what() -> None:
    assert shares(HELD) == {
        "sink": {0: 1.0},
        "memory": {2: 0.5},
        "changed": {3: 1.0, 4: 0.25},
        "chunk": {8: 1.0},
    }


def test_a_copy_is_shown_where_its_content_comes_from() -> None:
    ranks = Regions(range(0), range(0), range(0), range(4))
    copied = Held((0, 1, 10, 11), ranks, range(4, 4), frozenset({2}), {2: {0: 1.0}})
    assert shares(copied) == {"copied": {0: 0.5}, "changed": {5: 0.5}, "recent": {0: 1.0, 5: 0.5}}


def test_a_bank_is_a_bank_though_it_changes() -> None:
    bank = Held(
        (0, 2), Regions(range(0), range(2), range(2, 2), range(2, 2)), range(2, 2), frozenset({0}), {}
    )
    assert shares(bank) == {"bank": {0: 0.5, 1: 0.5}}


def drawn(file: bytes) -> set[str]:
    """Which of the palette's colours a picture shows on more than a few pixels."""
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rgb = {kind: [int(colour[i : i + 2], 16) for i in (1, 3, 5)] for kind, colour in COLOURS.items()}
    return {kind for kind, wanted in rgb.items() if (abs(pixels - wanted).max(axis=2) < 6).sum() > 50}


def test_the_picture_shows_what_is_held_and_is_small() -> None:
    file = cache_picture(trace(*[HELD] * 9, switches={2: "recache"}), "a title")
    assert drawn(file) == {"sink", "memory", "changed", "chunk"}
    assert len(file) < 60_000


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OutputError, match=r"pip install 'tetherflow\[plot\]'"):
        cache_picture(trace(HELD), "a title")
