"""Infinity-RoPE against a window in plain lists: positions, flushes and scene cuts."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError

from tests.policies.plain import MODEL, Plain, assert_is, oldest_past, run_with
from tetherflow import Event, Layout, Slots
from tetherflow.cache.events import How
from tetherflow.errors import LayoutError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import write_script
from tetherflow_policies.infinity_rope import InfinityRope


def plain(sink: int, recent: int, keep: int, jump: int) -> Plain:
    def flush(held: list[int], event: Event) -> list[int]:
        return held[:sink] + held[sink:][-keep:] if event.how in ("flush", "cut") else held

    def place(held: list[int], chunk: int, event: Event | None) -> list[int]:
        if event and event.how == "cut":
            return [*range(len(held) - chunk), *range(jump, jump + chunk)]
        return list(range(len(held)))

    return Plain(oldest_past(sink, sink + recent), flush, place)


def infinity_rope(keep: int = 2, jump: int = 45) -> Pipeline:
    return Pipeline(InfinityRope(InfinityRope.Options(keep=keep, jump=jump), name="infinity-rope"))


hows = st.sampled_from(["keep", "recache", "flush", "cut"])


@settings(max_examples=25)
@given(
    sink=st.integers(0, 2),
    recent=st.integers(2, 5),
    keep=st.integers(1, 3),
    jump=st.integers(0, 60),
    sizes=st.lists(st.integers(1, 2), min_size=3, max_size=6),
    passes=st.integers(0, 2),
    hows=st.dictionaries(st.integers(1, 5), hows, max_size=3),
    seed=st.integers(0, 100),
)
def test_is_the_window_in_lists(
    sink: int,
    recent: int,
    keep: int,
    jump: int,
    sizes: list[int],
    passes: int,
    hows: dict[int, How],
    seed: int,
) -> None:
    engine = MODEL.engine(Layout(sink, 0, recent), infinity_rope(keep, jump), batch=2)
    script = write_script(MODEL, sizes, passes=[passes], seeds=[seed, seed + 1])
    switches = {index: Event(how, sum(sizes[:index])) for index, how in hows.items()}
    assert_is(engine, script, plain(sink, recent, keep, jump), switches)


def test_published_numbers() -> None:
    """A window of six, three of which are the chunk; a cut leaves frame 0 and the last two, and jumps."""
    engine = MODEL.engine(Layout(1, 0, 5), infinity_rope())
    script = write_script(MODEL, [3] * 4)
    assert_is(engine, script, plain(1, 5, 2, 45), {3: Event("cut", 9)})
    assert engine.origins()[0, 0].tolist() == [0, 7, 8, 9, 10, 11]
    assert InfinityRope().options == InfinityRope.Options(keep=2, jump=45)


def test_parts_of_a_frame_stand_together() -> None:
    """In units of two bands a frame, at and after a cut, all read what they read in units of frames."""
    script = write_script(MODEL, [3] * 5)
    lists, cut = plain(1, 5, 2, 45), {3: Event("cut", 9)}
    attended = lists.run([chunk.layer(0) for chunk in script], cut)[0]
    engine = MODEL.engine(Layout(1, 0, 5), infinity_rope(), unit=1)
    found = run_with(engine, script, cut).attended[:: MODEL.layers]
    for x, wanted in zip(found, attended, strict=True):
        assert (x[0] - wanted).abs().max() < 2e-5


def test_memory_is_refused() -> None:
    with pytest.raises(
        LayoutError, match="'infinity-rope' keeps no memory, but the regions give it 2 frames"
    ):
        InfinityRope().check_layout(Layout(1, 2, 3))


def test_positions_do_not_follow_the_video() -> None:
    slots = Slots(0, 7, Layout(1, 0, 5), 3, torch.tensor([[0, 19, 20, 21, 22, 23]]), current=range(3, 6))
    assert InfinityRope().place(slots) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("option", ["keep", "jump"])
def test_options_are_not_negative(option: str) -> None:
    with pytest.raises(ValidationError, match=option):
        InfinityRope.Options.model_validate({option: -1})
