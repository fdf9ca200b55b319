"""Caches that save memory compute what others do, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.drive import Sizes, assert_same, assert_same_record
from tests.cache.plugins import FEW_SALTS, ScatterEvictor, WanderEvictor, tethercache
from tetherflow import Eviction, Layout, Slots, hookimpl
from tetherflow.cache import CacheEngine, Positions
from tetherflow.errors import LayoutError
from tetherflow.pipeline import Pipeline
from tetherflow.testing.script import run, write_script
from tetherflow_policies.grab import Relevance, TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow

SIZES = Sizes()

POLICIES: dict[str, tuple[Layout, Callable[[], Pipeline]]] = {
    "recall": (Layout(1, 3, 4), tethercache),
    "window": (Layout(1, 0, 6), lambda: Pipeline(SinkWindow())),
    "anywhere, each sample its own": (Layout(1, 3, 4), lambda: Pipeline(ScatterEvictor(FEW_SALTS))),
    "a run anywhere": (Layout(1, 3, 4), lambda: Pipeline(WanderEvictor(FEW_SALTS))),
}


def engine(policy: str, share: bool, positions: Positions = "block-relative") -> CacheEngine:
    layout, pipeline = POLICIES[policy]
    return CacheEngine(
        SIZES.shape, layout, pipeline(), SIZES.rotary, batch=2, positions=positions, share_rotated=share
    )


@pytest.mark.parametrize("policy", POLICIES)
@given(
    frames=st.lists(st.integers(1, 4), min_size=4, max_size=8),
    passes=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_attention_is_the_same(policy: str, frames: list[int], passes: list[int], seed: int) -> None:
    script = write_script(SIZES, frames, passes=passes, seeds=[seed, seed + 1])
    own, shared = engine(policy, False), engine(policy, True)
    assert_same_record(run(own, script), run(shared, script))
    for layer in range(SIZES.layers):
        assert_same(own.contents(layer), shared.contents(layer))


def test_snapshot_continues_from_either() -> None:
    """What is shared is no state: it is rotated anew before it is read."""
    start, rest = write_script(SIZES, [3] * 4, seeds=[0, 1]), write_script(SIZES, [3] * 4, seeds=[2, 3])
    one, other = engine("recall", True), engine("recall", True)
    run(one, start)
    other.restore(one.snapshot())
    assert_same_record(run(one, rest), run(other, rest))


def test_one_buffer_is_counted_once() -> None:
    own, shared = engine("window", False), engine("window", True)
    store = own.layers[0]
    assert store.rotated is not None
    assert own.nbytes - shared.nbytes == (SIZES.layers - 1) * store.rotated.nbytes
    buffers = {layer.rotated.data_ptr() for layer in shared.layers if layer.rotated is not None}
    assert len(buffers) == 1


def test_absolute_positions_have_nothing_to_share() -> None:
    script = write_script(SIZES, [3] * 5, seeds=[0, 1])
    own, shared = (engine("window", share, "absolute") for share in (False, True))
    assert_same_record(run(own, script), run(shared, script))
    assert own.nbytes == shared.nbytes
    assert torch.equal(own.origins(), shared.origins())


def test_a_cache_for_small_chunks_is_smaller_and_decides_alike() -> None:
    layout, pipeline = POLICIES["recall"]
    script = write_script(SIZES, [2] * 8)
    records = []
    sizes = []
    for chunk_frames in (None, 2):
        cache = CacheEngine(SIZES.shape, layout, pipeline(), SIZES.rotary, chunk_frames=chunk_frames)
        records.append(run(cache, script))
        sizes.append(cache.nbytes)
    assert_same_record(*records)
    assert sizes[0] > sizes[1]
    with pytest.raises(LayoutError, match="a chunk of 3 frames; this cache was made for 2 at most"):
        cache.begin(3)


class AllButNewest(RecallWindow):
    """Lets all recent units compete, the newest excepted."""

    eager = True

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        first = slots.layout.standing + slots.layout.memory
        return Eviction(range(first, max(first + count, slots.held - 1)), to=self.destination)


def test_a_cache_for_small_chunks_has_room_for_all_that_an_eager_policy_sends_away() -> None:
    script = write_script(SIZES, [2] * 8)
    records = []
    for chunk_frames in (None, 2):
        policy = Pipeline(AllButNewest(), [Relevance(name="relevance")], TopM())
        cache = CacheEngine(SIZES.shape, Layout(1, 2, 6), policy, SIZES.rotary, chunk_frames=chunk_frames)
        records.append(run(cache, script))
    assert_same_record(*records)
    assert records[0].origins[-1].shape[2] < 9


def test_a_cache_for_chunks_that_do_not_fit_is_refused() -> None:
    layout, pipeline = POLICIES["recall"]
    with pytest.raises(LayoutError, match="does not fit into a recent region of 4"):
        CacheEngine(SIZES.shape, layout, pipeline(), SIZES.rotary, chunk_frames=5)
