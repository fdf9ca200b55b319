"""Runs of the engine that must agree with one another; each test holds one property.

 1. denoising_passes_leave_no_trace                2. restored_snapshot_continues_bit_for_bit (elsewhere too)
 3. snapshot_restores_what_was_dropped             4. layers_decide_apart
 5. order_of_layers_does_not_matter                6. batch_equals_its_rows_alone
 7. batch_of_scattered_evictions_equals_its_rows   8. range_and_the_same_ranks_as_tensor_agree
 9. kept_rotated_keys_follow_their_units          10. tau_zero_edits_nothing
11. tau_one_gives_the_trusted_statistics          12. alpha_zero_is_relevance_alone
13. deferred_checks_change_nothing                14. full_sliding_window_forgets_what_it_dropped
15. window_holds_the_same_frames_for_any_chunks   16. candidates_come_in_time_order_and_are_copies
17. stored_keys_are_those_read_in_time_order
"""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from tests.cache.drive import Sizes, assert_close, assert_same, assert_same_record, contents
from tests.cache.plugins import (
    FEW_SALTS,
    DrawSelector,
    ListedRecallWindow,
    ListedWindow,
    MarginTopM,
    ScatterEvictor,
    WanderEvictor,
    tethercache,
)
from tetherflow import (
    Candidates,
    Draft,
    Editor,
    Eviction,
    Evictor,
    Layout,
    Scorer,
    Slots,
    Statistics,
    hookimpl,
)
from tetherflow.cache import Positions, Unit
from tetherflow.pipeline import Pipeline
from tetherflow.testing.script import attend, run, write_script
from tetherflow_policies.grab import Relevance, TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow
from tetherflow_policies.sliding_window import SlidingWindow
from tetherflow_policies.tame import Tame

SIZES = Sizes(layers=2, heads=2, head_dim=6, grid=(1, 3))
POLICIES: dict[str, Callable[[], Pipeline]] = {
    "sink-window": lambda: Pipeline(SinkWindow()),
    "scatter": lambda: Pipeline(ScatterEvictor()),
    "wander": lambda: Pipeline(WanderEvictor()),
    "tethercache": tethercache,
    "scatter-draw": lambda: Pipeline(
        ScatterEvictor(destination="memory"), select=DrawSelector(), edit=[Tame()]
    ),
}
DROPPING = ["sink-window", "scatter", "wander"]
SHARE = settings.default.max_examples // 100 or 1  # 1 unless a profile asks for more
few = settings(max_examples=10 * SHARE)

layouts = st.builds(Layout, st.integers(0, 2), st.integers(1, 4), st.integers(1, 4))


@st.composite
def plans(draw: st.DrawFn) -> tuple[Layout, list[int], int]:
    """A layout, chunks that fill it several times over, and a seed."""
    layout = draw(layouts)
    frames = draw(st.lists(st.integers(1, layout.recent), min_size=6, max_size=10))
    return layout, [layout.recent] * (layout.budget // layout.recent) + frames, draw(st.integers(0, 1000))


def suited(policy: str, layout: Layout) -> Layout:
    """The layout, without memory where the policy keeps none."""
    return Layout(layout.sink, 0, layout.recent) if policy == "sink-window" else layout


@pytest.mark.parametrize("policy", POLICIES)
@few
@given(plan=plans(), passes=st.integers(1, 3))
def test_denoising_passes_leave_no_trace(
    policy: str, plan: tuple[Layout, list[int], int], passes: int
) -> None:
    layout, frames, seed = plan
    layout = suited(policy, layout)
    script = write_script(SIZES, frames, passes=[passes], seeds=[seed])
    noisy, quiet = (SIZES.engine(layout, POLICIES[policy]()) for _ in range(2))
    run(noisy, script)
    run(quiet, [chunk.without_noisy() for chunk in script])
    assert_same(contents(noisy), contents(quiet))
    assert torch.equal(noisy.origins(), quiet.origins())


@pytest.mark.parametrize(
    ("policy", "positions"),
    [(policy, "block-relative") for policy in POLICIES]
    + [(policy, "absolute") for policy in POLICIES if policy in DROPPING],
)
@few
@given(plan=plans(), after=st.integers(0, 8))
def test_restored_snapshot_continues_bit_for_bit(
    policy: str, positions: Positions, plan: tuple[Layout, list[int], int], after: int
) -> None:
    layout, frames, seed = plan
    layout = suited(policy, layout)
    make = POLICIES[policy]
    script = write_script(SIZES, frames, seeds=[seed, seed + 1])
    first, second = script[:after], script[after:]

    engine = SIZES.engine(layout, make(), batch=2, positions=positions)
    run(engine, first)
    snapshot = engine.snapshot()
    continued = run(engine, second)
    final = contents(engine)

    engine.restore(snapshot)
    again = run(engine, second)
    other = SIZES.engine(layout, make(), batch=2, positions=positions)
    other.restore(snapshot)
    elsewhere = run(other, second)

    assert_same_record(continued, again)
    assert_same_record(continued, elsewhere)
    assert_same(final, contents(engine))
    assert_same(final, contents(other))


def test_snapshot_restores_what_was_dropped() -> None:
    script = write_script(SIZES, [2] * 6)
    engine = SIZES.engine(Layout(1, 2, 3), tethercache())
    run(engine, script[:5])
    snapshot, dropped = engine.snapshot(), engine.dropped
    run(engine, script[5:])
    engine.restore(snapshot)
    assert_same(engine.dropped, dropped)
    assert any(len(frames[0]) for frames in dropped)


@few
@given(plan=plans())
def test_layers_decide_apart(plan: tuple[Layout, list[int], int]) -> None:
    layout, frames, seed = plan
    script = write_script(SIZES, frames, seeds=[seed])
    both = SIZES.engine(layout, tethercache())
    record = run(both, script)
    for layer in range(SIZES.layers):
        one = Sizes(1, SIZES.heads, SIZES.head_dim, SIZES.grid).engine(layout, tethercache())
        alone = run(one, [chunk.layer(layer) for chunk in script])
        assert_same([origins[layer : layer + 1] for origins in record.origins], alone.origins)
        assert_same(record.attended[layer :: SIZES.layers], alone.attended)
        assert_same(contents(both)[3 * layer : 3 * layer + 3], contents(one))


def test_layers_do_choose_differently() -> None:
    """The test above would say little if they never did."""
    record = run(SIZES.engine(Layout(1, 3, 3), tethercache()), write_script(SIZES, [3] * 12))
    assert any(not torch.equal(origins[0], origins[1]) for origins in record.origins)


@few
@given(plan=plans())
def test_order_of_layers_does_not_matter(plan: tuple[Layout, list[int], int]) -> None:
    layout, frames, seed = plan
    script = write_script(SIZES, frames, passes=[0], seeds=[seed])
    forth, back = (SIZES.engine(layout, tethercache()) for _ in range(2))
    for chunk in script:
        outputs = []
        for engine, order in ((forth, (0, 1)), (back, (1, 0))):
            engine.begin(chunk.frames)
            engine.commit()
            outputs.append(attend(engine, chunk.clean, order))
            engine.end()
        assert_same(*outputs)
    assert_same(contents(forth), contents(back))


@settings(max_examples=20 * SHARE)
@given(
    plan=plans(), batch=st.integers(2, 3), alpha=st.sampled_from([0.0, 0.35]), tau=st.sampled_from([0.0, 0.6])
)
def test_batch_equals_its_rows_alone(
    plan: tuple[Layout, list[int], int], batch: int, alpha: float, tau: float
) -> None:
    layout, frames, seed = plan
    script = write_script(SIZES, frames, seeds=range(seed, seed + batch))
    select = MarginTopM()
    together = SIZES.engine(layout, tethercache(alpha=alpha, tau=tau, select=select), batch=batch)
    record = run(together, script)
    assume(select.smallest_margin > 1e-5)  # a nearer tie is rounding's to decide
    for row in range(batch):
        one = SIZES.engine(layout, tethercache(alpha=alpha, tau=tau))
        alone = run(one, [chunk.row(row) for chunk in script])
        assert_same([origins[:, row : row + 1] for origins in record.origins], alone.origins)
        for ours, theirs in zip(record.dropped, alone.dropped, strict=True):
            assert_same([dropped[row : row + 1] for dropped in ours], theirs)
        assert_close([out[row : row + 1] for out in record.attended], alone.attended, 1e-5)
        assert_close([x[row : row + 1] for x in contents(together)], contents(one), 1e-5)


@few
@given(plan=plans())
def test_batch_of_scattered_evictions_equals_its_rows_alone(plan: tuple[Layout, list[int], int]) -> None:
    layout, frames, seed = plan
    script = write_script(SIZES, frames, seeds=[seed, seed + 1])
    for destination in ("drop", "memory"):

        def policy(salts: list[list[int]], to: str = destination) -> Pipeline:
            evict = ScatterEvictor(salts, to)  # type: ignore[arg-type]
            return Pipeline(evict, select=DrawSelector(salts) if to == "memory" else None)

        record = run(SIZES.engine(layout, policy(FEW_SALTS), batch=2), script)
        for row in range(2):
            salts = [[layer[row]] for layer in FEW_SALTS]
            alone = run(SIZES.engine(layout, policy(salts)), [chunk.row(row) for chunk in script])
            assert_same([origins[:, row : row + 1] for origins in record.origins], alone.origins)
            assert_close([out[row : row + 1] for out in record.attended], alone.attended, 1e-6)


@settings(max_examples=50 * SHARE)
@given(plan=plans(), policy=st.sampled_from(["wander", "window", "recall"]))
def test_range_and_the_same_ranks_as_tensor_agree(plan: tuple[Layout, list[int], int], policy: str) -> None:
    layout, frames, seed = plan
    pairs = {
        "wander": lambda: (Pipeline(WanderEvictor()), Pipeline(WanderEvictor(as_tensor=True))),
        "window": lambda: (Pipeline(SinkWindow()), Pipeline(ListedWindow())),
        "recall": lambda: (tethercache(), tethercache(evict=ListedRecallWindow())),
    }
    if policy == "window":
        layout = Layout(layout.sink, 0, layout.recent)
    script = write_script(SIZES, frames, seeds=[seed])
    ranged, listed = (SIZES.engine(layout, pipeline) for pipeline in pairs[policy]())
    assert_same_record(run(ranged, script), run(listed, script))
    assert_same(contents(ranged), contents(listed))


def test_kept_rotated_keys_follow_their_units() -> None:
    """A unit below the evicted range may lie in a slot that the chunk needs: its rotated key moves too."""

    class FirstThenLater(Evictor):
        @hookimpl
        def evict(self, slots: Slots, count: int) -> Eviction:
            start = 0 if slots.chunk == 2 else 2
            return Eviction(range(start, start + count))

    engine = SIZES.engine(Layout(0, 2, 2), Pipeline(FirstThenLater()))
    run(engine, write_script(SIZES, [2, 2, 1, 2]))
    assert engine.origins()[0, 0].tolist() == [1, 2, 5, 6]
    keys, _, read = contents(engine)[:3]
    assert_close([read], [engine.rotary.turn(keys, engine.rotary.phases(torch.arange(4)))], 1e-6)


@few
@given(plan=plans())
def test_tau_zero_edits_nothing(plan: tuple[Layout, list[int], int]) -> None:
    layout, frames, seed = plan
    script = write_script(SIZES, frames, seeds=[seed])
    zero, none = (SIZES.engine(layout, tethercache(tau=tau)) for tau in (0.0, None))
    assert_same_record(run(zero, script), run(none, script))
    assert_same(contents(zero), contents(none))


class Watch(Editor):
    """Keeps the drafts that it sees, which others may have edited."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.seen: list[tuple[Tensor, Tensor, Statistics, Statistics, Tensor]] = []

    @hookimpl
    def edit(self, draft: Draft) -> None:
        parts = (
            draft.keys.clone(),
            draft.values.clone(),
            draft.trusted_keys,
            draft.trusted_values,
            draft.admitted,
        )
        self.seen.append(parts)


@few
@given(plan=plans())
def test_tau_one_gives_the_trusted_statistics(plan: tuple[Layout, list[int], int]) -> None:
    layout, frames, seed = plan
    watch = Watch("watch")
    policy = Pipeline(RecallWindow(), [Relevance()], TopM(), [Tame(Tame.Options(tau=1.0)), watch])
    sizes = Sizes(grid=(4, 5))  # so many tokens vary enough for their own deviation to divide by
    run(sizes.engine(layout, policy), write_script(sizes, frames, seeds=[seed]))
    assert watch.seen
    for keys, values, trusted_keys, trusted_values, _ in watch.seen:
        for x, trusted in ((keys, trusted_keys), (values, trusted_values)):
            assert_close([x.mean(dim=2)], [trusted.mean[:, None].expand_as(x[:, :, 0])], 1e-5)
            assert_close(
                [x.var(dim=2, correction=0)], [trusted.variance[:, None].expand_as(x[:, :, 0])], 1e-4
            )


@few
@given(plan=plans())
def test_alpha_zero_is_relevance_alone(plan: tuple[Layout, list[int], int]) -> None:
    layout, frames, seed = plan
    script = write_script(SIZES, frames, seeds=[seed])
    zero = SIZES.engine(layout, tethercache(alpha=0.0))
    alone = SIZES.engine(layout, Pipeline(RecallWindow(), [Relevance(name="relevance")], TopM(), [Tame()]))
    assert_same_record(run(zero, script), run(alone, script))


@pytest.mark.parametrize("policy", POLICIES)
@few
@given(plan=plans())
def test_deferred_checks_change_nothing(policy: str, plan: tuple[Layout, list[int], int]) -> None:
    layout, frames, seed = plan
    layout = suited(policy, layout)
    script = write_script(SIZES, frames, seeds=[seed])
    strict, deferred = (SIZES.engine(layout, POLICIES[policy](), strict=strict) for strict in (True, False))
    assert_same_record(run(strict, script), run(deferred, script))
    deferred.checks.drain()


@few
@given(recent=st.integers(1, 5), extra=st.integers(1, 6), seed=st.integers(0, 100))
def test_full_sliding_window_forgets_what_it_dropped(recent: int, extra: int, seed: int) -> None:
    """At block-relative positions, what went before the window leaves no trace in what attention returns."""
    layout = Layout(0, 0, recent)
    script = write_script(SIZES, [1] * (recent + extra), seeds=[seed])
    long, fresh = (SIZES.engine(layout, Pipeline(SlidingWindow())) for _ in range(2))
    run(long, script[:-recent])
    later, again = run(long, script[-recent:]), run(fresh, script[-recent:])
    assert_close(later.attended[-SIZES.layers :], again.attended[-SIZES.layers :], 1e-5)
    assert_close(contents(long), contents(fresh), 1e-5)


@few
@given(layout=layouts, chunks=st.lists(st.integers(1, 4), min_size=3, max_size=12))
def test_window_holds_the_same_frames_for_any_chunks(layout: Layout, chunks: list[int]) -> None:
    layout = Layout(layout.sink, 0, layout.recent)
    engine = SIZES.engine(layout, Pipeline(SinkWindow()))
    run(engine, write_script(SIZES, [min(frames, layout.recent) for frames in chunks], passes=[0]))
    written = engine.frames_written
    expected = [frame for frame in range(written) if frame < layout.sink or frame >= written - layout.recent]
    assert engine.origins()[0, 0].tolist() == expected


class WatchOrder(Scorer):
    """Keeps the origins of the candidates that it sees, and checks what it is told of them."""

    def __init__(self) -> None:
        super().__init__(name="watch-order")
        self.seen: list[Tensor] = []

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        batch, count = candidates.origins.shape
        keys, values = candidates.read_keys(), candidates.read_values()
        assert keys.shape[:2] == values.shape[:2] == candidates.mean_keys.shape[:2] == (batch, count)
        assert candidates.residents == candidates.capacity < count
        assert candidates.mean_query.shape == (batch, keys.shape[3], candidates.head_dim)
        torch.testing.assert_close(keys.mean(dim=2), candidates.mean_keys, atol=1e-5, rtol=1e-5)
        self.seen.append(candidates.origins.clone())
        keys.fill_(float("nan"))  # copies: the cache must not care
        values.fill_(float("nan"))
        candidates.mean_keys.fill_(float("nan"))
        candidates.origins.fill_(-7)
        return torch.zeros(batch, count)


def test_candidates_come_in_time_order_and_are_copies() -> None:
    watch = WatchOrder()
    policy = Pipeline(RecallWindow(), [watch], DrawSelector())
    engine = SIZES.engine(Layout(1, 3, 3), policy, batch=2)
    record = run(engine, write_script(SIZES, [3, 3, 2, 1, 3, 3, 2], seeds=[0, 1]))
    assert len(watch.seen) > 2 * SIZES.layers
    for origins in watch.seen:
        assert bool((origins.diff(dim=1) > 0).all())
    assert all(bool(tensor.isfinite().all()) for tensor in contents(engine))
    names = [name for dropped in record.dropped for name in dropped[0][0].tolist()]
    assert sorted(names + engine.origins()[0, 0].tolist()) == list(range(engine.frames_written))


class WatchStored(Scorer):
    """Compares keys where they are stored with those that are read in time order; all scores are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.apart = 0  # layers in which the two orders differed

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return torch.zeros(candidates.origins.shape)

    @hookimpl
    def revise(self, slots: Slots) -> None:
        (keys, places), rows = slots.stored_keys, torch.arange(len(slots.origins))[:, None]
        assert torch.equal(keys[rows, places], slots.read_keys(range(slots.held)))
        assert keys.shape[1] == slots.held
        self.apart += not torch.equal(places, torch.arange(slots.held).expand_as(places))


@pytest.mark.parametrize("unit", ["frame", "token"])
def test_stored_keys_are_those_read_in_time_order(unit: Unit) -> None:
    watch = WatchStored()
    policy = Pipeline(RecallWindow(), [watch], DrawSelector())
    engine = SIZES.engine(Layout(1, 3, 3), policy, batch=2, unit=unit)
    run(engine, write_script(SIZES, [3, 3, 2, 1, 3, 3, 2], seeds=[0, 1]))
    assert watch.apart > 2 * SIZES.layers
