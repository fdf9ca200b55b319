"""Regions: what they add up to, what they refuse, and where they lie as a cache fills."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tetherflow import Layout
from tetherflow.errors import LayoutError

layouts = st.builds(
    Layout,
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from([1, 4]),
)


def test_default_is_the_papers() -> None:
    layout = Layout()
    assert (layout.sink, layout.memory, layout.recent, layout.budget) == (3, 14, 4, 21)


@pytest.mark.parametrize("region", ["sink", "memory", "recent", "bank"])
def test_negative_region_is_refused(region: str) -> None:
    with pytest.raises(LayoutError, match=rf"region '{region}' is -1; a region holds 0 or more frames"):
        Layout(**{region: -1})


def test_cache_without_recent_is_refused() -> None:
    with pytest.raises(
        LayoutError, match="region 'recent' is 0; the current chunk lives there, so it needs at least 1"
    ):
        Layout(recent=0)


def test_chunk_larger_than_recent_is_refused() -> None:
    Layout(recent=3).check_chunk(3)
    with pytest.raises(
        LayoutError, match="chunk of 4 frames does not fit into a recent region of 3; make 'recent' at"
    ):
        Layout(recent=3).check_chunk(4)


@given(layout=layouts, share=st.floats(0, 1))
def test_regions_split_what_is_held(layout: Layout, share: float) -> None:
    """Sink, memory and recent follow on one another, cover every rank, and keep within their sizes."""
    held = round(share * layout.budget)
    regions = layout.regions(held)
    assert [*regions.sink, *regions.bank, *regions.memory, *regions.recent] == list(range(held))
    for name in ("sink", "bank", "memory", "recent"):
        assert len(getattr(regions, name)) <= getattr(layout, name)


@given(layout=layouts)
def test_full_cache_has_whole_regions(layout: Layout) -> None:
    regions = layout.regions(layout.budget)
    for name in ("sink", "bank", "memory", "recent"):
        assert len(getattr(regions, name)) == getattr(layout, name)
