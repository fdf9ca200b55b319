"""Rolling Forcing's cache against a window in plain lists, and against the window that it amounts to."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.policies.plain import MODEL, Plain, assert_is, oldest_past
from tetherflow import Event, Layout, Slots
from tetherflow.cache.interfaces import Unit
from tetherflow.errors import LayoutError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import write_script
from tetherflow.testing.script import run
from tetherflow_policies.rolling_forcing import RollingForcing
from tetherflow_policies.sink_window import SinkWindow


def plain(anchor: int, recent: int) -> Plain:
    def flush(held: list[int], event: Event) -> list[int]:
        return held[:anchor] + held[anchor:][-2:] if event.how in ("flush", "cut") else held

    def place(held: list[int], chunk: int, event: Event | None) -> list[int]:
        first = len(held) - len(held[anchor:])
        working = held[first:]
        if not working:
            return held
        return [working[0] - anchor + i for i in range(first)] + working

    return Plain(oldest_past(anchor, anchor + recent), flush, place)


def rolling_forcing() -> Pipeline:
    return Pipeline(RollingForcing(name="rolling-forcing"))


layouts = st.builds(Layout, st.integers(1, 3), st.just(0), st.integers(2, 5))
chunks = st.lists(st.integers(1, 2), min_size=3, max_size=7)


@settings(max_examples=25)
@given(layout=layouts, sizes=chunks, passes=st.integers(0, 2), flushed=st.integers(1, 6))
def test_is_the_window_in_lists(layout: Layout, sizes: list[int], passes: int, flushed: int) -> None:
    engine = MODEL.engine(layout, rolling_forcing(), batch=2, positions="absolute")
    script = write_script(MODEL, sizes, passes=[passes], seeds=[0, 1])
    switches = {flushed: Event("flush", sum(sizes[:flushed]))}
    assert_is(engine, script, plain(layout.sink, layout.recent), switches)


@settings(max_examples=25)
@given(layout=layouts, sizes=chunks, unit=st.sampled_from(["frame", 1, "token"]))
def test_reads_what_a_relative_window_with_a_sink_reads(layout: Layout, sizes: list[int], unit: Unit) -> None:
    """Only differences of positions are seen: the two anchors stand equally far from all else."""
    script = write_script(MODEL, sizes)
    here = run(MODEL.engine(layout, rolling_forcing(), positions="absolute", unit=unit), script)
    there = run(MODEL.engine(layout, Pipeline(SinkWindow(name="sink-window"))), script)
    for x, y in zip(here.attended, there.attended, strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=2e-5)


def test_published_positions() -> None:
    """For chunk c the anchor stands at c − 18, fifteen working frames after it, and the chunk at c."""
    held = torch.tensor([[0, 1, 2, *range(40, 58)]])
    slots = Slots(0, 18, Layout(3, 0, 18), 3, held, current=range(18, 21))
    placed = RollingForcing().place(slots)
    assert placed.tolist() == [list(range(37, 58))]


def test_regions_that_have_no_anchor_are_refused() -> None:
    with pytest.raises(LayoutError, match="anchors the window to the sink, but the regions give it 0 frames"):
        RollingForcing().check_layout(Layout(0, 0, 3))
    with pytest.raises(LayoutError, match="'rolling-forcing' keeps no memory"):
        RollingForcing().check_layout(Layout(1, 1, 3))
    with pytest.raises(LayoutError, match="nothing between anchor and window; set the bank to 0"):
        RollingForcing().check_layout(Layout(1, 0, 3, bank=1))
