"""Recent units written anew between chunks, beside an oracle that keeps every frame in a list."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.cache.drive import assert_same, contents
from tests.cache.plugins import tethercache
from tetherflow import Slots, hookimpl
from tetherflow.cache import CacheEngine, Layout, Positions, Unit
from tetherflow.cache.events import Event, How
from tetherflow.errors import LayoutError, TetherflowError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import Model
from tetherflow.testing.script import Pass, attend
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow

MODEL = Model()
BATCH = 2


@attrs.define
class Frames:
    """Every frame's newest keys and values, and a plain attention over those that an engine holds."""

    positions: Positions
    kept: list[dict[int, tuple[Tensor, Tensor]]] = attrs.field(
        factory=lambda: [{} for _ in range(MODEL.layers)]
    )

    def take(self, given: Pass, first: int) -> None:
        for kept, (_, key, value) in zip(self.kept, given, strict=True):
            pairs = (x.unflatten(1, (-1, MODEL.tokens)).unbind(dim=1) for x in (key, value))
            for index, pair in enumerate(zip(*pairs, strict=True)):
                kept[first + index] = pair

    def turned(self, x: Tensor, held: Sequence[int], frame: int) -> Tensor:
        """A frame's queries or keys `[B, T, H, D]` at its position among those held."""
        position = held.index(frame) if self.positions == "block-relative" else frame
        return MODEL.rotary.turn(x[:, None], torch.tensor([position]))[:, 0]

    def attend(self, layer: int, query: Tensor, held: Sequence[int], first: int) -> Tensor:
        """What queries of the frames from `first` on read: all that is held up to the last of them."""
        frames = query.unflatten(1, (-1, MODEL.tokens)).unbind(dim=1)
        seen = [frame for frame in held if frame < first + len(frames)]
        q = torch.cat([self.turned(x, seen, first + index) for index, x in enumerate(frames)], dim=1)
        k = torch.cat([self.turned(self.kept[layer][frame][0], seen, frame) for frame in seen], dim=1)
        v = torch.cat([self.kept[layer][frame][1] for frame in seen], dim=1)
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def run_chunk(engine: CacheEngine, given: Pass, frames: int) -> list[Tensor]:
    engine.begin(frames)
    attend(engine, given)
    engine.commit()
    attended = attend(engine, given)
    engine.end()
    return attended


def generators(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + row) for row in range(BATCH)]


@given(
    sink=st.integers(0, 3),
    recent=st.integers(2, 6),
    chunks=st.integers(1, 7),
    how=st.sampled_from(["recache", "flush"]),
    most=st.integers(1, 6),
    piece=st.integers(1, 3),
    left=st.integers(0, 2),
    positions=st.sampled_from(["block-relative", "absolute"]),
    seed=st.integers(0, 1000),
)
# After a flush, what is left as it was is still to be rotated to its new rank.
@example(1, 4, 4, "flush", 2, 1, 1, "block-relative", 0)
def test_frames_are_written_where_they_are_and_read_what_is_older(
    sink: int,
    recent: int,
    chunks: int,
    how: How,
    most: int,
    piece: int,
    left: int,
    positions: Positions,
    seed: int,
) -> None:
    """Up to `most` of the newest frames, but the last `left` of them, in pieces; then a chunk as usual."""
    policy = Pipeline(SinkWindow(name="sink-window"))
    engine = MODEL.engine(Layout(sink, 0, recent), policy, batch=BATCH, positions=positions)
    frames, drawn = Frames(positions), generators(seed)
    for chunk in range(chunks):
        given = MODEL.random_pass(drawn, 2)
        run_chunk(engine, given, 2)
        frames.take(given, 2 * chunk)
    end = 2 * chunks
    engine.switch(Event(how, end))
    held = engine.origins()[0, 0].tolist()
    newer = min(most, engine.rewritable)
    while newer > left:
        count = min(piece, newer - left)
        first, newer = end - newer, newer - count
        given = MODEL.random_pass(drawn, count)
        engine.rewrite(count, newer)
        attended = attend(engine, given)
        engine.end()
        frames.take(given, first)
        for layer, out in enumerate(attended):
            torch.testing.assert_close(out, frames.attend(layer, given[layer][0], held, first))
        assert engine.origins()[0, 0].tolist() == held
        assert engine.frames_written == end
    given = MODEL.random_pass(drawn, 2)
    attended = run_chunk(engine, given, 2)
    frames.take(given, end)
    held = engine.origins()[0, 0].tolist()
    for layer, out in enumerate(attended):
        torch.testing.assert_close(out, frames.attend(layer, given[layer][0], held, end))


@pytest.mark.parametrize("unit", ["frame", "token", 1])
def test_writing_the_same_again_changes_nothing(unit: Unit) -> None:
    """Under a policy with memory, statistics and edits too; nor do other frames change, nor identities."""
    layout = Layout(1, 3, 4)
    engine = MODEL.engine(layout, tethercache(), batch=BATCH, unit=unit)
    drawn, newest = generators(5), MODEL.random_pass(generators(9), 3)
    for _ in range(5):
        run_chunk(engine, MODEL.random_pass(drawn, 3), 3)
    run_chunk(engine, newest, 3)
    before, origins = contents(engine), engine.origins()
    memory, size = engine.memory_origins(), engine.nbytes
    engine.rewrite(3)
    attend(engine, newest)
    engine.end()
    assert_same(contents(engine), before)
    assert torch.equal(engine.origins(), origins)
    assert torch.equal(engine.memory_origins(), memory)
    assert engine.nbytes == size


def test_a_snapshot_after_a_part_was_written_anew_goes_on_alike() -> None:
    policy = Pipeline(SinkWindow(name="sink-window"))
    engine = MODEL.engine(Layout(1, 0, 6), policy, batch=BATCH)
    drawn = generators(1)
    for _ in range(4):
        run_chunk(engine, MODEL.random_pass(drawn, 2), 2)
    engine.switch(Event("flush", 8))
    engine.rewrite(1, 1)
    attend(engine, MODEL.random_pass(drawn, 1))
    engine.end()
    state, given = engine.snapshot(), MODEL.random_pass(drawn, 2)
    first = run_chunk(engine, given, 2)
    engine.rewrite(1, 1)  # left in the middle
    engine.restore(state)
    assert_same(run_chunk(engine, given, 2), first)


@pytest.mark.parametrize(
    ("frames", "newer", "message"),
    [
        (5, 0, "5 frames cannot be written anew; recent holds 4"),
        (2, 3, "2 frames, 3 before the end, cannot be written anew; recent holds 4"),
        (0, 1, "0 frames, 1 before the end, cannot"),
        (1, -1, "1 frames, -1 before the end, cannot"),
    ],
)
def test_only_recent_frames_are_written_anew(frames: int, newer: int, message: str) -> None:
    engine = MODEL.engine(Layout(1, 0, 4), Pipeline(SinkWindow(name="sink-window")), batch=BATCH)
    for _ in range(4):
        run_chunk(engine, MODEL.random_pass(generators(1), 2), 2)
    with pytest.raises(LayoutError, match=message):
        engine.rewrite(frames, newer)


class KeepsSix(RecallWindow):
    """`RecallWindow` that lets six units stay at a switch, more than are recent."""

    @hookimpl
    def switch(self) -> int:
        return 6


def test_what_a_flush_leaves_of_memory_is_not_written_anew() -> None:
    engine = MODEL.engine(Layout(1, 4, 3), tethercache(evict=KeepsSix(name="keeps-six")), batch=BATCH)
    for _ in range(8):
        run_chunk(engine, MODEL.random_pass(generators(1), 2), 2)
    engine.switch(Event("flush", 16))
    assert engine.held == 7
    assert engine.rewritable == 3


def test_nothing_is_written_anew_while_a_chunk_is_made() -> None:
    engine = MODEL.engine(Layout(1, 0, 4), Pipeline(SinkWindow(name="sink-window")), batch=BATCH)
    engine.begin(2)
    with pytest.raises(TetherflowError, match="rewrite was called in phase 'denoise'"):
        engine.rewrite(1)


def test_what_a_flush_leaves_beyond_recent_is_memory() -> None:
    """Two frames stay, of which recent has room for one: the other was recalled, or is about to be."""
    engine = MODEL.engine(Layout(1, 2, 1), tethercache())
    for _ in range(9):
        run_chunk(engine, MODEL.random_pass(generators(1)[:1], 1), 1)
    held = engine.origins()[0, 0].tolist()
    engine.switch(Event("flush", 9))
    assert engine.origins()[0, 0].tolist() == [0, *held[-2:]]
    assert (engine.regions.memory, engine.regions.recent) == (range(1, 2), range(2, 3))
    assert engine.rewritable == 1


def test_units_of_a_frame_may_be_placed_apart() -> None:
    """In their own chunk they stand where the first of them does, and from then on where they are placed."""

    class ByRank(SinkWindow):
        @hookimpl
        def place(self, slots: Slots) -> list[int]:
            return list(range(slots.held))

    engine = MODEL.engine(Layout(0, 0, 3), Pipeline(ByRank()), unit="token")
    for _ in range(2):
        run_chunk(engine, MODEL.random_pass(generators(1)[:1], 1), 1)
    for store in engine.layers:
        keys, read = (store.take(buffer, store.order) for buffer in (store.keys, store.read_keys))
        positions = torch.tensor([0, 1, 2, 3, 4, 4, 4, 4])
        torch.testing.assert_close(read, MODEL.rotary.turn(keys, positions))


def test_a_chunk_that_is_written_anew_is_told_its_own_first_frame() -> None:
    """Frames after it are out of sight, but were written."""
    told: list[tuple[int, int]] = []

    class Tells(SinkWindow):
        @hookimpl
        def place(self, slots: Slots) -> list[int]:
            told.append((slots.first_frame, int(slots.frames[0, slots.current.start])))
            return list(range(slots.held))

    engine = MODEL.engine(Layout(1, 0, 8), Pipeline(Tells()))
    for _ in range(4):
        run_chunk(engine, MODEL.random_pass(generators(1)[:1], 3), 3)
    engine.switch(Event("recache", 12))
    told.clear()
    for frames, newer in ((2, 6), (3, 3), (3, 0)):
        engine.rewrite(frames, newer)
        attend(engine, MODEL.random_pass(generators(1)[:1], frames))
        engine.end()
    assert set(told) == {(4, 4), (6, 6), (9, 9)}
