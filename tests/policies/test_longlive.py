"""LongLive's window and what it does at a prompt switch, against a window in plain lists."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.policies.plain import MODEL, Plain, assert_is, oldest_past
from tetherflow import Event, Layout
from tetherflow.cache.events import How
from tetherflow.errors import LayoutError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import write_script
from tetherflow.testing.script import attend, run
from tetherflow_policies.longlive import LongLive


def plain(sink: int, recent: int) -> Plain:
    def flush(held: list[int], event: Event) -> list[int]:
        return held[:sink] if event.how in ("flush", "cut") else held

    return Plain(oldest_past(sink, sink + recent), flush, lambda held, chunk, event: held)


def longlive() -> Pipeline:
    return Pipeline(LongLive(name="longlive"))


@settings(max_examples=25)
@given(
    sink=st.integers(0, 3),
    recent=st.integers(2, 5),
    sizes=st.lists(st.integers(1, 2), min_size=3, max_size=7),
    hows=st.dictionaries(st.integers(1, 6), st.sampled_from(["keep", "recache", "flush", "cut"]), max_size=3),
)
def test_is_the_window_in_lists(sink: int, recent: int, sizes: list[int], hows: dict[int, How]) -> None:
    engine = MODEL.engine(Layout(sink, 0, recent), longlive(), batch=2, positions="absolute")
    script = write_script(MODEL, sizes, seeds=[0, 1])
    switches = {index: Event(how, sum(sizes[:index])) for index, how in hows.items()}
    assert_is(engine, script, plain(sink, recent), switches)


def test_published_numbers() -> None:
    engine = MODEL.engine(Layout(3, 0, 9), longlive(), positions="absolute")
    run(engine, write_script(MODEL, [3] * 6))
    assert engine.origins()[0, 0].tolist() == [0, 1, 2, *range(9, 18)]
    engine.switch(Event("flush", 18))
    assert engine.origins()[0, 0].tolist() == [0, 1, 2]


def test_recache_writes_the_window_anew_and_leaves_the_sink() -> None:
    """At a switch with `recache` every unit is there for the pass that writes the window anew."""
    engine = MODEL.engine(Layout(3, 0, 9), longlive(), positions="absolute")
    *script, again = write_script(MODEL, [3] * 6 + [9])
    run(engine, script)
    before = engine.contents(0)[1]
    engine.switch(Event("recache", 18))
    engine.rewrite(9)
    attend(engine, again.clean)
    engine.end()
    after = engine.contents(0)[1]
    assert engine.origins()[0, 0].tolist() == [0, 1, 2, *range(9, 18)]
    assert torch.equal(after[:, :3], before[:, :3])
    assert torch.equal(after[:, 3:], again.clean[0][2].unflatten(1, (9, -1)))


def test_memory_is_refused() -> None:
    with pytest.raises(LayoutError, match="'longlive' keeps no memory, but the regions give it 1 frames"):
        LongLive().check_layout(Layout(3, 1, 9))
