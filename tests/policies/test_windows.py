"""The three evictors: which ranks leave, and which regions suit them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tetherflow import Layout, Slots
from tetherflow.errors import LayoutError
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow
from tetherflow_policies.sliding_window import SlidingWindow


def slots(layout: Layout, held: int, incoming: int) -> Slots:
    return Slots(0, 0, layout, incoming, torch.arange(held)[None])


@given(recent=st.integers(1, 9), count=st.integers(1, 9))
def test_sliding_window_evicts_the_oldest(recent: int, count: int) -> None:
    eviction = SlidingWindow().evict(count)
    assert eviction.ranks == range(count)
    assert eviction.to == "drop"


@given(sink=st.integers(0, 3), recent=st.integers(1, 9), count=st.integers(1, 9))
def test_sink_window_evicts_the_oldest_past_the_sink(sink: int, recent: int, count: int) -> None:
    layout = Layout(sink, 0, recent)
    eviction = SinkWindow().evict(slots(layout, layout.budget, count), count)
    assert eviction.ranks == range(sink, sink + count)
    assert eviction.to == "drop"


@given(sink=st.integers(0, 3), memory=st.integers(1, 5), recent=st.integers(1, 5), data=st.data())
def test_recall_window_hands_over_the_oldest_recent(
    sink: int, memory: int, recent: int, data: st.DataObject
) -> None:
    """Whatever room the cache still had, sink and memory end up full and recent holds the last frames."""
    layout = Layout(sink, memory, recent)
    incoming = data.draw(st.integers(1, recent))
    held = data.draw(st.integers(layout.budget - incoming + 1, layout.budget))
    count = held + incoming - layout.budget
    eviction = RecallWindow().evict(slots(layout, held, incoming), count)
    assert eviction.to == "memory"
    assert isinstance(eviction.ranks, range)
    kept = [rank for rank in range(held) if rank not in eviction.ranks]
    assert kept[: sink + memory] == list(range(sink + memory))
    assert kept[sink + memory :] == list(range(held - recent + incoming, held))


def test_regions_that_no_window_fills_are_refused() -> None:
    for layout in (Layout(1, 0, 3), Layout(0, 1, 3)):
        with pytest.raises(LayoutError, match="set both to 0, or use 'sink-window' or 'recall-window'"):
            SlidingWindow().check_layout(layout)
    with pytest.raises(
        LayoutError, match="'sink-window' keeps no memory, but the regions give it 1 frames; set it to 0"
    ):
        SinkWindow().check_layout(Layout(0, 1, 3))
    with pytest.raises(
        LayoutError, match="'recall-window' recalls into memory, but the regions give it 0 frames"
    ):
        RecallWindow().check_layout(Layout(1, 0, 3))


def test_suitable_regions_pass() -> None:
    SlidingWindow().check_layout(Layout(0, 0, 3))
    SinkWindow().check_layout(Layout(2, 0, 3))
    RecallWindow().check_layout(Layout(0, 1, 3))
