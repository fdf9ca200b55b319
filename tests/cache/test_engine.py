"""The engine's own rules: phases, shapes, what it refuses, and what it reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cache.drive import Sizes, assert_same, contents
from tests.cache.plugins import DrawSelector, ScatterEvictor, tethercache
from tetherflow import (
    Candidates,
    Draft,
    Editor,
    Evictor,
    Layout,
    Revision,
    Scorer,
    Selection,
    Selector,
    Slots,
    When,
    hookimpl,
)
from tetherflow.cache import CacheEngine, Phase
from tetherflow.errors import LayoutError, StageError, TetherflowError
from tetherflow.pipeline import Pipeline
from tetherflow.testing.script import attend, run, write_script
from tetherflow_policies.grab import TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow
from tetherflow_policies.sliding_window import SlidingWindow

SIZES = Sizes(layers=2, heads=1, head_dim=4, grid=(1, 2))


def window(recent: int = 4) -> CacheEngine:
    return SIZES.engine(Layout(0, 0, recent), Pipeline(SlidingWindow()))


def one_pass(frames: int = 2, seed: int = 0, batch: int = 1) -> list[tuple[Tensor, Tensor, Tensor]]:
    generators = [torch.Generator().manual_seed(seed + row) for row in range(batch)]
    return SIZES.random_pass(generators, frames)


def test_phases_follow_on_one_another() -> None:
    engine = window()
    assert engine.phase is Phase.IDLE
    engine.begin(2)
    assert engine.phase is Phase.DENOISE
    attend(engine, one_pass())
    engine.commit()
    assert engine.phase is Phase.COMMIT
    attend(engine, one_pass())
    engine.end()
    assert engine.phase is Phase.IDLE
    assert (engine.chunk, engine.frames_written, engine.held) == (0, 2, 2)


def idle(engine: CacheEngine) -> None:
    pass


def denoising(engine: CacheEngine) -> None:
    engine.begin(2)


def committing(engine: CacheEngine) -> None:
    engine.begin(2)
    engine.commit()


@pytest.mark.parametrize(
    ("prepare", "call", "text"),
    [
        (
            denoising,
            lambda engine: engine.begin(2),
            "begin was called in phase 'denoise'; it belongs in 'idle'",
        ),
        (committing, lambda engine: engine.begin(2), "begin was called in phase 'commit'"),
        (idle, lambda engine: engine.commit(), "commit was called in phase 'idle'; it belongs in 'denoise'"),
        (committing, lambda engine: engine.commit(), "commit was called in phase 'commit'"),
        (idle, lambda engine: engine.end(), "end was called in phase 'idle'; it belongs in 'commit'"),
        (denoising, lambda engine: engine.end(), "end was called in phase 'denoise'"),
        (
            denoising,
            lambda engine: engine.keep(0, *one_pass()[0]),
            "keep was called in phase 'denoise'; it belongs in 'commit'",
        ),
        (
            denoising,
            lambda engine: engine.snapshot(),
            "snapshot was called in phase 'denoise'; it belongs in 'idle'",
        ),
        (
            idle,
            lambda engine: attend(engine, one_pass()),
            "attend was called between chunks; call begin first",
        ),
        (idle, lambda engine: engine.begin(0), "a chunk of 0 frames; it needs at least 1"),
        (idle, lambda engine: engine.begin(5), "chunk of 5 frames does not fit into a recent region of 4"),
        (committing, lambda engine: engine.end(), r"layers \[0, 1\] did not attend in the context pass"),
    ],
)
def test_call_out_of_turn_is_refused(
    prepare: Callable[[CacheEngine], None], call: Callable[[CacheEngine], object], text: str
) -> None:
    engine = window()
    prepare(engine)
    with pytest.raises(TetherflowError, match=text):
        call(engine)


def test_second_context_pass_is_refused() -> None:
    """It would recall a second time, from pending frames that are gone."""
    engine = window()
    committing(engine)
    attend(engine, one_pass())
    with pytest.raises(TetherflowError, match="layer 0 attends a second time in the context pass"):
        attend(engine, one_pass())


def test_layer_that_misses_the_context_pass_is_named() -> None:
    engine = window()
    committing(engine)
    engine.attend(0, *one_pass()[0])
    with pytest.raises(TetherflowError, match=r"layers \[1\] did not attend"):
        engine.end()


def test_refused_chunk_changes_nothing() -> None:
    engine = window()
    run(engine, write_script(SIZES, [2, 2]))
    before = contents(engine)
    with pytest.raises(LayoutError):
        engine.begin(5)
    assert (engine.phase, engine.chunk, engine.held) == (Phase.IDLE, 1, 4)
    assert_same(contents(engine), before)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x[:1], id="one sample for two"),
        pytest.param(lambda x: x[:, :2], id="a token a frame"),
        pytest.param(lambda x: x[:, :-1], id="a token short"),
        pytest.param(lambda x: x[..., :2], id="narrow heads"),
        pytest.param(lambda x: x.repeat(1, 1, 2, 1), id="two heads for one"),
    ],
)
def test_tensors_of_another_shape_are_refused(which: int, change: Callable[[Tensor], Tensor]) -> None:
    """Some of them would broadcast into the buffers without a word."""
    engine = SIZES.engine(Layout(0, 0, 4), Pipeline(SlidingWindow()), batch=2)
    engine.begin(2)
    tensors = list(one_pass(batch=2)[1])
    tensors[which] = change(tensors[which])
    name = ("query", "key", "value")[which]
    with pytest.raises(
        TetherflowError, match=rf"layer 1: the {name} is \[.*\]; this chunk's is \[2, 4, 1, 4\]"
    ):
        engine.attend(1, *tensors)


def test_recall_without_a_memory_region_is_refused() -> None:
    policy = Pipeline(ScatterEvictor(destination="memory"), select=DrawSelector())
    with pytest.raises(LayoutError, match="recalls into memory, but the regions give it 0 frames"):
        SIZES.engine(Layout(1, 0, 3), policy)


@pytest.mark.parametrize(
    ("policy", "layout", "text"),
    [
        (
            lambda: Pipeline(SlidingWindow()),
            Layout(1, 0, 3),
            "'sliding-window' keeps no sink",
        ),
        (
            lambda: Pipeline(SlidingWindow()),
            Layout(0, 1, 3),
            "'sliding-window' keeps no sink",
        ),
        (lambda: Pipeline(SinkWindow()), Layout(1, 2, 3), "'sink-window' keeps no memory"),
        (tethercache, Layout(1, 0, 3), "'recall-window' recalls into memory"),
    ],
)
def test_regions_that_do_not_suit_a_policy_are_refused(
    policy: Callable[[], Pipeline], layout: Layout, text: str
) -> None:
    with pytest.raises(LayoutError, match=text):
        SIZES.engine(layout, policy())


def test_evictor_sees_the_cache_as_it_stands() -> None:
    seen: list[tuple[int, int, int, int, list[int], int]] = []

    class Witness(Evictor):
        @hookimpl
        def evict(self, slots: Slots, count: int) -> object:
            seen.append(
                (slots.layer, slots.chunk, slots.incoming, slots.held, slots.origins[0].tolist(), count)
            )
            slots.origins.fill_(99)  # a copy: the cache must not care
            from tetherflow import Eviction

            return Eviction(range(count))

    engine = SIZES.engine(Layout(0, 0, 4), Pipeline(Witness()))
    run(engine, write_script(SIZES, [3, 3, 2]))
    assert seen == [
        (0, 1, 3, 3, [0, 1, 2], 2),
        (1, 1, 3, 3, [0, 1, 2], 2),
        (0, 2, 2, 4, [2, 3, 4, 5], 2),
        (1, 2, 2, 4, [2, 3, 4, 5], 2),
    ]
    assert engine.origins()[0, 0].tolist() == [4, 5, 6, 7]
    assert [dropped.tolist() for dropped in engine.dropped] == [[[2, 3]], [[2, 3]]]


def test_nothing_is_asked_of_a_policy_while_there_is_room() -> None:
    class Never(Evictor):
        @hookimpl
        def evict(self) -> None:
            raise AssertionError("called")

    engine = SIZES.engine(Layout(1, 2, 3), Pipeline(Never()))
    run(engine, write_script(SIZES, [3, 3]))
    with pytest.raises(StageError, match="raised AssertionError: called"):
        run(engine, write_script(SIZES, [1]))


def test_budget_that_is_no_multiple_of_the_chunk_recalls() -> None:
    """The published code never recalls then; here every frame that leaves recent competes."""
    seen: list[list[int]] = []

    class Witness(Scorer):
        @hookimpl
        def score(self, candidates: Candidates) -> Tensor:
            if candidates.layer == 0:
                seen.append(candidates.origins[0].tolist())
            return -candidates.origins.float()  # keep the oldest

    policy = Pipeline(tethercache().evictor, [Witness()], tethercache().selector)
    engine = SIZES.engine(Layout(1, 3, 4), policy)  # K = 8, chunks of 3
    run(engine, write_script(SIZES, [3] * 4))
    assert seen == [[1, 2, 3, 4], [1, 2, 3, 5, 6, 7]]
    assert engine.origins()[0, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert [dropped.tolist() for dropped in engine.dropped] == [[[5, 6, 7]]] * 2


def test_memory_passes_in_without_competition_while_the_cache_fills() -> None:
    engine = SIZES.engine(Layout(1, 4, 3), tethercache())
    run(engine, write_script(SIZES, [3, 3]))
    assert engine.memory_origins().unique().tolist() == [-1]
    assert engine.origins()[0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_bfloat16_is_stored_and_returned() -> None:
    engine = SIZES.engine(Layout(1, 2, 3), tethercache(), dtype=torch.bfloat16)
    script = write_script(SIZES, [3] * 5)
    for chunk in script:
        engine.begin(chunk.frames)
        engine.commit()
        for layer, triple in enumerate(chunk.clean):
            out = engine.attend(layer, *(x.bfloat16() for x in triple))
            assert out.dtype == torch.bfloat16
        engine.end()
    for store in engine.layers:
        assert store.keys.dtype == store.values.dtype == store.read_keys.dtype == torch.bfloat16
        tokens = store.take(store.keys, store.order).float()
        keys = store.statistics(store.order)[:, :, 0]
        # Of what is stored: of what was computed they would be off by bfloat16's rounding.
        torch.testing.assert_close(keys.mean, tokens.mean(dim=2), atol=1e-6, rtol=1e-6)


def test_contents_are_copies() -> None:
    engine = window()
    run(engine, write_script(SIZES, [3]))
    before = contents(engine)
    for tensor in engine.contents(0):
        tensor.zero_()
    engine.origins().zero_()
    assert_same(contents(engine), before)


@pytest.mark.parametrize("when", ["begin", "first-pass", "commit"])
def test_a_decision_is_shared_at_any_moment(when: When) -> None:
    """Layers score their own keys, but those after the first take over what it chose."""

    class Own(Scorer):
        @hookimpl
        def score(self, candidates: Candidates) -> Tensor:
            return candidates.mean_keys.sum(dim=(2, 3))

    class Shared(TopM):
        decides_at: int | None = 0

    def memories(selector: TopM) -> Tensor:
        evictor = RecallWindow(RecallWindow.Options(when=when))
        engine = SIZES.engine(Layout(1, 3, 3), Pipeline(evictor, [Own()], selector))
        run(engine, write_script(SIZES, [3] * 8))
        return engine.memory_origins()

    alone, shared = memories(TopM()), memories(Shared())
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(shared[0], shared[1])
    assert torch.equal(shared[0], alone[0])


@pytest.mark.parametrize("ranks", [(1, 3), (1, 3, 5), range(1, 6, 2), range(5, 4, -1)])
def test_revised_keys_stand_where_their_units_do(ranks: tuple[int, ...] | range) -> None:
    """However their ranks are written."""

    class Doubles(SinkWindow):
        @hookimpl
        def revise(self, slots: Slots) -> Revision | None:
            if slots.held < 7:
                return None
            return Revision(ranks, 2 * slots.read_keys(ranks), slots.read_values(ranks))

    engine = SIZES.engine(Layout(1, 0, 7), Pipeline(Doubles()))
    run(engine, write_script(SIZES, [2] * 4))
    for store in engine.layers:
        keys, read = (store.take(buffer, store.order) for buffer in (store.keys, store.read_keys))
        torch.testing.assert_close(read, SIZES.rotary.rotate(keys, torch.arange(engine.held)))


def test_what_is_subtracted_from_memory_is_admitted_too() -> None:
    admitted: list[list[bool]] = []

    class Subtracts(Selector):
        blends = True

        @hookimpl
        def select(self, candidates: Candidates) -> Selection:
            count = candidates.origins.shape[1]
            weights = 2 * torch.eye(candidates.capacity, count)[None]
            weights[..., -1] = -1.0
            return Selection(torch.arange(candidates.capacity)[None], weights)

    class Looks(Editor):
        @hookimpl
        def edit(self, draft: Draft) -> None:
            admitted.append(draft.admitted[0].tolist())

    engine = SIZES.engine(Layout(1, 3, 3), Pipeline(RecallWindow(), [], Subtracts(), [Looks()]))
    run(engine, write_script(SIZES, [3] * 4))
    assert admitted
    assert all(newcomers == [False, False, True] for newcomers in admitted[SIZES.layers :])
