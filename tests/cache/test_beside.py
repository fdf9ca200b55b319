"""Work beside what follows it: on a CPU in order and at once; tests/gpu/test_graphs.py has it on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.cache.drive import Sizes, assert_same, contents
from tests.cache.plugins import tethercache
from tetherflow import Draft, Editor, Layout, hookimpl
from tetherflow.cache.beside import Beside, Work
from tetherflow.errors import StageError
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import layout_of, load_recipe, pipeline_of
from tetherflow.testing.script import attend, run, write_script
from tetherflow_policies.grab import Relevance, TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame

SIZES = Sizes()


def test_on_a_cpu_everything_happens_in_order() -> None:
    beside, seen = Beside(torch.device("cpu")), list[str]()
    with beside(torch.ones(1)):
        seen.append("beside")
    beside.later(lambda: seen.append("later"))
    seen.append("next")
    wait = beside.mark()
    wait()
    beside.launch()
    beside.join()
    beside.forget()
    assert seen == ["beside", "later", "next"]


class Waits(Beside):
    """Leaves for later what a GPU would, on a CPU."""

    @contextmanager
    def __call__(self, *read: Tensor) -> Iterator[None]:
        yield

    def later(self, work: Work) -> None:
        self._later.append(work)


@pytest.mark.parametrize(
    "recipe", ["tethercache", "fademem-tame", "grab-ema-sink", "h2o-tame", "tethercache-adaptive"]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_left_for_later_changes_nothing(
    recipe: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = load_recipe(recipe)
    script = write_script(SIZES, [3] * 12, seeds=range(batch))
    records = []
    for kind in (Beside, Waits):
        monkeypatch.setattr("tetherflow.cache.engine.Beside", kind)
        engine = SIZES.engine(
            layout_of(read), pipeline_of(read), batch=batch, positions=read.cache.positions, strict=False
        )
        records.append((run(engine, script).attended, contents(engine)))
        engine.checks.drain()
    for plain, late in zip(*records, strict=True):
        assert_same(plain, late)


def test_an_editor_is_not_blamed_for_the_next_ones_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both edit the same draft, and the first one's check may be answered after the second has run."""
    monkeypatch.setattr("tetherflow.cache.engine.Beside", Waits)

    class Breaks(Editor):
        @hookimpl
        def edit(self, draft: Draft) -> None:
            draft.keys.fill_(float("nan"))

    editors = [Tame(name="fine"), Breaks(name="breaks")]
    policy = Pipeline(RecallWindow(), [Relevance()], TopM(), editors)
    engine = SIZES.engine(Layout(1, 3, 4), policy, strict=False)
    with pytest.raises(StageError, match=r"'breaks'.*made keys that are not finite"):
        run(engine, write_script(SIZES, [3] * 6))


def test_what_is_left_is_done_before_a_snapshot_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tetherflow.cache.engine.Beside", Waits)
    engine = SIZES.engine(Layout(1, 3, 4), tethercache(), strict=False)
    run(engine, write_script(SIZES, [3] * 5))
    state = engine.snapshot()
    before = engine.book.moments
    assert before is not None
    expected = before.clone()
    engine.begin(3)
    tensors = SIZES.random_pass([torch.Generator().manual_seed(1)], 3)
    attend(engine, tensors)
    engine.commit()
    attend(engine, tensors)
    engine.restore(state)
    engine.join()
    assert torch.equal(before, expected)
