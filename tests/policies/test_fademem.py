"""FadeMem against its specification, written out over a list of entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.cache.drive import Sizes
from tests.policies.slow import Entry, Slow, hold_to
from tetherflow import Layout
from tetherflow.errors import LayoutError
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import layout_of, load_recipe, pipeline_of
from tetherflow.testing import run, write_script
from tetherflow_policies.fademem import FadeMem
from tetherflow_policies.recall_window import RecallWindow

SIZES = Sizes(layers=2, heads=1, head_dim=6, grid=(1, 2))


@dataclasses.dataclass(eq=False)
class Faded(Entry):
    """What a memory entry is besides."""

    centre: int = 0
    span: int = 1


class SlowFadeMem(Slow):
    """12 entries of memory, 3 live frames, 21 positions; the exponents are the paper's."""

    memory, live, window = 12, 3, 21
    entries: list[Faded]  # type: ignore[assignment]

    def begin(self, frames: int) -> None:
        while len(self.entries) + frames > self.memory + self.live:
            self.merge(self.frame - max(0, self.live - frames))

    def merge(self, start: int) -> None:
        """Merge the nearest pair in memory; live frames, from `start` on, take no part."""
        memory = [entry for entry in self.entries if entry.centre < start]
        u = [(start - entry.centre) ** 0.3 for entry in memory]
        gaps = [abs(u[i] - u[i + 1]) for i in range(len(u) - 2)]
        i = gaps.index(min(gaps))
        a, b = memory[i], memory[i + 1]
        if a.frame > 0:
            wa, wb = a.span**0.5, b.span**0.5
            a.key = (wa * a.key + wb * b.key) / (wa + wb)
            a.value = (wa * a.value + wb * b.value) / (wa + wb)
            a.centre = round((a.span * a.centre + b.span * b.centre) / (a.span + b.span))
        a.span += b.span
        self.entries.remove(b)

    def positions(self, frames: int) -> list[float]:
        now = self.window - frames
        gaps: list[int] = []
        for place, entry in enumerate(reversed(self.entries), start=1):  # the newest first
            nearest = min(max(self.frame - entry.centre, 1), now)
            if self.frame >= now and place <= frames:
                nearest = place
            gaps.append(max(nearest, gaps[-1] + 1) if gaps else nearest)
        for older in range(len(gaps)):  # what went past the window is pushed back into it
            gaps[-1 - older] = min(gaps[-1 - older], now - older)
        return [now - gap for gap in reversed(gaps)] + [now + i for i in range(frames)]

    def commit(self, chunk: Sequence[Entry]) -> None:
        self.entries += [Faded(entry.frame, entry.key, entry.value, entry.frame) for entry in chunk]


def fademem(**options: float) -> Pipeline:
    evict = RecallWindow(RecallWindow.Options(when="begin"), name="recall-window")
    return Pipeline(evict, select=FadeMem(FadeMem.Options.model_validate(options), name="fademem"))


def test_rollout_is_the_specified_one() -> None:
    """Long enough that merged entries merge again, and that positions no longer fit the window."""
    recipe = load_recipe("fademem")
    hold_to(SlowFadeMem, pipeline_of(recipe), layout_of(recipe), [3] * 22, sizes=SIZES)


@settings(max_examples=10)
@given(
    memory=st.integers(2, 6),
    live=st.integers(1, 4),
    extra=st.integers(0, 5),
    data=st.data(),
)
def test_rollout_of_any_size_is_the_specified_one(
    memory: int, live: int, extra: int, data: st.DataObject
) -> None:
    class Sized(SlowFadeMem):
        window = memory + live + extra

    Sized.memory, Sized.live = memory, live
    frames = data.draw(st.lists(st.integers(1, live), min_size=6, max_size=14))
    hold_to(Sized, fademem(window=Sized.window), Layout(0, memory, live), frames, sizes=SIZES)


def test_positions_are_those_of_training() -> None:
    """The anchor at 0, the newest three right before the chunk, all different and in order."""
    engine = SIZES.engine(Layout(0, 12, 3), fademem())
    run(engine, write_script(SIZES, [3] * 40))
    placement = engine._views[0].placement
    assert isinstance(placement, torch.Tensor)
    found = placement[0].tolist()
    assert found[0] == 0
    assert found[-6:] == [15, 16, 17, 18, 19, 20]
    assert found == sorted(set(found))


def test_spans_add_up_to_the_video() -> None:
    """Every frame that left recent is in one unit of memory."""
    engine = SIZES.engine(Layout(0, 4, 3), fademem())
    run(engine, write_script(SIZES, [3] * 9))
    for store in engine.layers:
        assert float(store.book.metadata(store.order)["span"].sum()) == 27


def test_anchor_does_not_change() -> None:
    engine = SIZES.engine(Layout(0, 3, 3), fademem())
    script = write_script(SIZES, [3] * 8)
    run(engine, script)
    keys, values = engine.contents(0)
    key, value = (x.unflatten(1, (3, -1))[:, 0] for x in script[0].clean[0][1:])
    assert torch.equal(keys[:, 0], key)
    assert torch.equal(values[:, 0], value)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout(0, 1, 3), "give it 2 frames of memory, not 1"),
        (Layout(1, 4, 3), "keeps its own anchor in memory; set sink and bank to 0"),
        (Layout(0, 19, 3), "places 22 frames at 21 positions; make the budget smaller or the window larger"),
    ],
)
def test_regions_that_do_not_suit_it_are_refused(layout: Layout, text: str) -> None:
    with pytest.raises(LayoutError, match=text):
        SIZES.engine(layout, fademem())


def test_parts_of_frames_are_refused() -> None:
    with pytest.raises(LayoutError, match="'fademem' keeps whole frames; set the cache's unit to frame"):
        SIZES.engine(Layout(0, 2, 2), fademem(), unit="token")
