"""What an engine goes back to: snapshots, and context passes that were not computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cache.drive import Sizes, assert_same, contents
from tests.cache.plugins import tethercache
from tetherflow import Candidates, Layout, Scorer, hookimpl
from tetherflow.errors import StageError
from tetherflow.pipeline import Pipeline
from tetherflow.testing.script import Pass, attend, run, write_script

SIZES = Sizes(layers=2, heads=1, head_dim=4, grid=(1, 2))


def one_pass(seed: int) -> Pass:
    return SIZES.random_pass([torch.Generator().manual_seed(seed)], 2)


def test_snapshot_can_be_restored_after_a_plugin_failed() -> None:
    """A fault in the middle of a chunk loses nothing that a snapshot holds."""

    class Fuse(Scorer):
        lit = False

        @hookimpl
        def score(self, candidates: Candidates) -> Tensor:
            if self.lit and candidates.layer == 1:
                raise RuntimeError("blown")
            return candidates.mean_keys.sum(dim=(2, 3))

    fuse = Fuse()
    policy = Pipeline(tethercache().evictor, [fuse], tethercache().selector)
    engine = SIZES.engine(Layout(1, 2, 3), policy)
    script = write_script(SIZES, [3, 3, 3, 2, 3])
    run(engine, script[:3])
    snapshot = engine.snapshot()
    fuse.lit = True
    with pytest.raises(StageError, match="blown"):
        run(engine, script[3:])
    fuse.lit = False
    engine.restore(snapshot)
    continued = run(engine, script[3:])

    other = SIZES.engine(Layout(1, 2, 3), policy)
    run(other, script[:3])
    assert_same(continued.attended, run(other, script[3:]).attended)
    assert_same(contents(engine), contents(other))


@pytest.mark.parametrize("strict", [True, False])
def test_a_context_pass_that_was_not_computed_is_taken_back(strict: bool) -> None:
    """As where it cannot be recorded for a GPU: the host forgets that its first layer had decided."""
    one, other = (
        SIZES.engine(Layout(1, 2, 4), tethercache(temperature=1.0, alpha=0.35, tau=0.6), strict=strict)
        for _ in range(2)
    )
    for chunk in range(8):
        noisy, clean = one_pass(2 * chunk), one_pass(2 * chunk + 1)
        for engine in (one, other):
            engine.begin(2)
            attend(engine, noisy)
            engine.commit()
        tensors, back = [store.snapshot() for store in other.layers], other.retake()
        other.attend(0, *one_pass(100)[0])
        for store, state in zip(other.layers, tensors, strict=True):
            store.restore(state)  # on a GPU nothing of it has happened
        back()
        assert_same(attend(one, clean), attend(other, clean))
        for engine in (one, other):
            engine.end()
        assert_same(one.dropped, other.dropped)
        assert_same(contents(one), contents(other))
    one.checks.drain()
    other.checks.drain()


def test_a_restored_engine_knows_nothing_of_faults_that_are_undone() -> None:
    class Fuse(Scorer):
        lit = False

        @hookimpl
        def score(self, candidates: Candidates) -> Tensor:
            return candidates.mean_keys.sum(dim=(2, 3)) / (0.0 if self.lit else 1.0)

    fuse = Fuse()
    policy = Pipeline(tethercache().evictor, [fuse], tethercache().selector)
    engine = SIZES.engine(Layout(1, 2, 3), policy, strict=False)
    script = write_script(SIZES, [3] * 8)
    run(engine, script[:3])
    snapshot = engine.snapshot()
    fuse.lit = True
    with pytest.raises(StageError, match="not finite"):
        run(engine, script[3:5])
    fuse.lit = False
    engine.restore(snapshot)
    run(engine, script[3:])
    engine.checks.drain()
    fuse.lit = True
    run(engine, script[:1])
    with pytest.raises(StageError, match="not finite"):
        engine.snapshot()
