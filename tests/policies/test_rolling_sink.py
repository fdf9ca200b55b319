"""Rolling Sink against its specification, written out over a list of entries."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from tests.cache.drive import Sizes
from tests.policies.slow import Entry, Slow, hold_to
from tetherflow import Layout
from tetherflow.cache import Positions, Unit
from tetherflow.errors import LayoutError
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import layout_of, load_recipe, pipeline_of
from tetherflow.testing import run, write_script
from tetherflow_policies.rolling_sink import RollingSink

SIZES = Sizes(layers=2, heads=1, head_dim=6, grid=(2, 2))


class SlowRollingSink(Slow):
    """A window of 21 frames in chunks of 3, as published: the first 21 archived, indices from 0 to 17."""

    window, chunk = 21, 3

    def __init__(self) -> None:
        super().__init__()
        self.archive: list[Entry] = []

    def begin(self, frames: int) -> None:
        while len(self.entries) + frames > self.window:
            self.entries.pop(0)

    def positions(self, frames: int) -> list[float]:
        return [entry.frame for entry in self.entries] + [self.frame + i for i in range(frames)]

    def commit(self, chunk: Sequence[Entry]) -> None:
        self.archive += [copy.copy(entry) for entry in chunk][: self.window - len(self.archive)]
        c, length = self.frame, self.window - self.chunk
        if c >= self.window:
            before = c - self.chunk
            o = before % length
            rows = [o, o + 1, o + 2] if before // length % 2 == 0 else [17 - o, 16 - o, 15 - o]
            for entry, row in zip(self.entries[-self.chunk :], rows, strict=True):
                entry.key, entry.value = self.archive[row].key, self.archive[row].value
        self.entries += [copy.copy(entry) for entry in chunk]


@pytest.mark.parametrize("positions", ["absolute", "block-relative"])
@pytest.mark.parametrize("unit", ["frame", 1, "token"])
def test_rollout_is_the_specified_one(positions: Positions, unit: str | int) -> None:
    """Through a turn forth and back, whatever the units; a common shift of positions changes nothing."""
    recipe = load_recipe("rolling-sink")
    policy = pipeline_of(recipe)
    hold_to(
        SlowRollingSink,
        policy,
        layout_of(recipe),
        [3] * 21,
        positions=positions,
        unit=unit,
        sizes=SIZES,  # type: ignore[arg-type]
    )


def test_steady_window_is_18_frames_of_the_archive_and_the_newest_3_as_they_were() -> None:
    engine = SIZES.engine(Layout(0, 0, 21), Pipeline(RollingSink(name="rolling-sink")), positions="absolute")
    script = write_script(SIZES, [3] * 16)
    run(engine, script)
    frames = [chunk.clean[0][2].unflatten(1, (3, -1))[:, i] for chunk in script for i in range(3)]
    held = engine.contents(0)[1]
    content = [next(t for t, x in enumerate(frames) if torch.equal(x, held[:, rank])) for rank in range(21)]
    assert content == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 45, 46, 47]
    assert engine.origins()[0, 0].tolist() == list(range(27, 48))


def test_archive_counts_as_memory() -> None:
    policy = Pipeline(RollingSink(name="rolling-sink"))
    engine = SIZES.engine(Layout(0, 0, 21), policy)
    frame = SIZES.tokens * SIZES.heads * SIZES.head_dim * 4
    assert engine.side_nbytes == SIZES.layers * 2 * 18 * frame
    assert engine.nbytes > engine.side_nbytes + SIZES.layers * 3 * 21 * frame


@pytest.mark.parametrize("unit", ["frame", 1])
def test_window_is_the_same_beside_a_sink(unit: Unit) -> None:
    """While the cache fills, too."""
    policy = Pipeline(RollingSink(RollingSink.Options(archive=6)))
    plain, beside = (SIZES.engine(Layout(sink, 0, 9), policy, unit=unit) for sink in (0, 2))
    for chunk in write_script(SIZES, [3, 2, 1, 3, 3, 2, 3, 3, 3]):
        run(plain, [chunk])
        run(beside, [chunk])
        window = beside.regions.recent
        for alone, all_held in zip(plain.contents(1), beside.contents(1), strict=True):
            assert torch.equal(all_held[:, window.start :], alone[:, -len(window) :])


def test_memory_is_refused() -> None:
    with pytest.raises(LayoutError, match="'rolling-sink' keeps no memory"):
        SIZES.engine(Layout(0, 1, 20), Pipeline(RollingSink()))


@pytest.mark.parametrize("short", [2, 3, 4, 5, 6])
def test_a_short_chunk_leaves_nothing_as_it_was(short: int) -> None:
    """Before the newest chunk, and past the archive; a video that is continued may end in a short one."""
    engine = SIZES.engine(Layout(0, 0, 12), Pipeline(RollingSink(RollingSink.Options(archive=6))))
    lengths = [3] * 8
    lengths[short] = 1
    script = write_script(SIZES, lengths)
    archive = torch.cat([chunk.clean[0][2] for chunk in script], dim=1).unflatten(1, (-1, SIZES.tokens))[
        :, :6
    ]
    for index, chunk in enumerate(script):
        run(engine, [chunk])
        values, first = engine.contents(0)[1], sum(lengths[:index])
        for rank, frame in enumerate(engine.origins()[0, 0].tolist()):
            archived = any(torch.equal(values[:, rank], archive[:, place]) for place in range(6))
            assert archived == (frame < max(6, first))
