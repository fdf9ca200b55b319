"""What is noted of a cache over time is what a session's engine holds."""

from __future__ import annotations

import pytest
import torch

from tetherflow.errors import EvaluationError
from tetherflow.recipe import Recipe, load_recipe
from tetherflow.rollout.batches import items_of
from tetherflow.rollout.cache_trace import CacheTrace, trace_cache
from tetherflow.rollout.open_session import open_session

pytestmark = pytest.mark.usefixtures("toy")

SWITCH = "rollout.prompts=[[{at: 0s, prompt: a circle}, {at: 3s, prompt: a square, switch: %s}]]"


def recipe(name: str, *changes: str) -> Recipe:
    return load_recipe(name, ["backbone.use=toy", "runtime.threads=1", "rollout.seconds=9", *changes])


def values_over_time(loaded: Recipe, chunks: int, layer: int) -> list[tuple[list[int], torch.Tensor]]:
    """Origins and values that a rollout of its own holds after each chunk, as its snapshots have them."""
    session = open_session(loaded, torch.device("cpu"))
    item, found = items_of(loaded)[0], []
    length = chunks * session.chunk_frames
    for _ in session.stream([item.schedule], latent_frames=length, seeds=[item.seed], decode=False):
        assert session.cache is not None
        state = session.cache.snapshot()["layers"][layer]
        order = state["order"][0]
        found.append((state["origins"][0, order].tolist(), state["units"][1, 0, order].clone()))
    return found


@pytest.mark.parametrize("name", ["fifo", "tethercache", "fademem", "deep-forcing", "memrope"])
def test_origins_are_those_of_snapshots(name: str) -> None:
    loaded = recipe(name)
    trace = trace_cache(loaded, 12, 1)
    held = [list(held.origins) for held in trace.chunks]
    assert held == [origins for origins, _ in values_over_time(loaded, 12, 1)]
    parts = trace.layout.parts
    for index, state in enumerate(trace.chunks):
        assert [state.origins[rank] for rank in state.chunk] == [
            *range(3 * index * parts, 3 * (index + 1) * parts)
        ]
        assert state.regions.recent.stop == len(state.origins)


@pytest.mark.parametrize("layer", [0, 1])
def test_blended_units_are_the_sums_that_are_noted(layer: int) -> None:
    loaded = recipe("fademem")
    trace = trace_cache(loaded, 10, layer)
    written: dict[int, torch.Tensor] = {}
    blended = 0
    for state, (origins, values) in zip(trace.chunks, values_over_time(loaded, 10, layer), strict=True):
        written |= {origins[rank]: values[rank] for rank in state.chunk}
        for rank, origin in enumerate(origins):
            if rank not in state.changed:
                assert torch.equal(values[rank], written[origin])
                continue
            shares = state.contents[rank]
            assert sum(shares.values()) == pytest.approx(1)
            total = sum(share * written[source] for source, share in shares.items())
            torch.testing.assert_close(values[rank], total, atol=1e-5, rtol=1e-5)
            blended += 1
    assert blended > 20


def test_copies_name_the_frame_they_are_of() -> None:
    """Rolling Sink: frame 18 holds frame 17's content, frame 19 that of 16, …; frame 36 that of 0."""
    last = trace_cache(recipe("rolling-sink"), 14, 0).chunks[-1]
    found = {last.origins[rank]: last.contents[rank] for rank in last.changed}
    assert found == {frame: {35 - frame if frame < 36 else frame - 36: 1.0} for frame in range(21, 39)}


def test_edited_units_have_changed_and_none_else() -> None:
    edited, plain = (trace_cache(recipe(name), 12, 0) for name in ("tethercache", "tethercache-no-tame"))
    assert not any(state.changed for state in plain.chunks)
    for state in edited.chunks:
        new = {rank for rank in state.regions.memory if state.origins[rank] >= 17}
        assert state.changed == new
        assert not state.contents
    assert edited.chunks[-1].changed


def switched(how: str) -> CacheTrace:
    return trace_cache(recipe("longlive", SWITCH % how), 8, 1)


def test_switches_are_noted_with_what_they_do() -> None:
    recached, flushed = switched("recache"), switched("flush")
    assert recached.switches == {4: "recache"}
    # What the chunk did not push out of recent was written anew. (Layer 0 does not know of prompts.)
    assert [recached.chunks[4].origins[rank] for rank in sorted(recached.chunks[4].changed)] == [
        *range(6, 12)
    ]
    assert flushed.chunks[4].origins == (0, 1, 2, 12, 13, 14)
    assert trace_cache(recipe("longlive", SWITCH % "flush"), 4, 0).switches == {}


def test_a_tick_a_chunk_and_the_middle_layer() -> None:
    ticks: list[None] = []
    trace = trace_cache(recipe("fifo", "backbone.layers=3"), 4, tick=lambda: ticks.append(None))
    assert (len(ticks), trace.layer, trace.chunk_frames, trace.chunk_seconds) == (4, 1, 3, 0.75)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(EvaluationError, match="there is no layer 2; backbone 'toy' has layers 0 to 1"):
        trace_cache(recipe("fifo"), 4, 2)
