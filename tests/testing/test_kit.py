"""The kit's strategies, its companions, and how it is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

import tetherflow.testing
from tetherflow import Candidates, Draft, Layout, Scorer, Slots, Stage, hookimpl
from tetherflow.errors import LayoutError, PipelineError, PluginError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import (
    RULES,
    Model,
    Rollout,
    Subject,
    candidates,
    complete,
    conformance,
    drafts,
    regions,
    rollouts,
    run,
    slots,
    write_script,
)
from tetherflow.testing.companions import Best, Oldest, Scatter, Spread
from tetherflow.testing.watch import Watch, first_difference
from tetherflow_policies.fademem import FadeMem
from tetherflow_policies.grab import TemporalDiversity
from tetherflow_policies.sliding_window import SlidingWindow
from tetherflow_policies.tame import Tame

few = settings(max_examples=10)


# --- strategies ---------------------------------------------------------------------------------------


@few
@given(shown=slots())
def test_slots_are_in_time_order_and_need_room(shown: Slots) -> None:
    assert bool((shown.origins.diff(dim=1) > 0).all())
    assert shown.held + shown.incoming > shown.layout.budget


@few
@given(shown=candidates(batch=(2, 2)))
def test_candidates_agree_with_themselves(shown: Candidates) -> None:
    """Long after the engine went on, what they read is what their means were taken of."""
    assert shown.origins.shape[0] == 2
    assert shown.origins.shape[1] > shown.capacity > 0
    torch.testing.assert_close(shown.read_keys().mean(dim=2), shown.mean_keys, atol=1e-5, rtol=1e-5)


@few
@given(shown=drafts(materials=["constant"]))
def test_drafts_are_of_the_material(shown: Draft) -> None:
    assert float(shown.key_statistics.variance.abs().max()) < 1e-8
    assert shown.admitted.dtype == torch.bool


@few
@given(layout=regions(lambda layout: layout.memory > 2 and not layout.sink))
def test_regions_suit(layout: Layout) -> None:
    assert layout.memory > 2
    assert layout.sink == 0


def test_regions_that_none_suits_are_refused() -> None:
    with pytest.raises(LayoutError, match="none of the 240 small regions suits"):
        regions(lambda layout: layout.memory > 9)


@few
@given(rollout=rollouts(batch=(2, 3), chunk=1))
def test_rollouts_fill_the_cache_and_go_on(rollout: Rollout) -> None:
    assert sum(rollout.frames) > rollout.layout.budget
    assert set(rollout.frames) == {1}
    engine = rollout.engine(complete(Scatter()))
    run(engine, rollout.script())
    assert engine.held == rollout.layout.budget


@few
@given(rollout=rollouts(switches=["recache", "flush"]))
def test_rollouts_switch_prompts_once_the_cache_is_full(rollout: Rollout) -> None:
    for chunk, _ in rollout.switches:
        assert sum(rollout.frames[:chunk]) > rollout.layout.budget
    policy = complete(Scatter())
    told: list[tuple[int, str]] = []
    watch = Watch(policy)
    run(rollout.engine(policy), rollout.script())
    for call in watch.calls:
        event = call.given["slots"].event
        if event is not None and call.layer == 0:
            told.append((call.chunk, event.how))
    assert set(told) <= set(rollout.switches)


def test_sample_is_the_same_beside_any_neighbour() -> None:
    both = write_script(Model(), [2, 1], seeds=[3, 4])
    alone = write_script(Model(), [2, 1], seeds=[4])
    for together, one in zip(both, alone, strict=True):
        for ours, theirs in zip(together.row(1).clean, one.clean, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# --- whole policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (SlidingWindow, ["SlidingWindow"]),
        (lambda: Scatter("memory"), ["kit-scatter", "kit-spread", "kit-best"]),
        (TemporalDiversity, ["kit-oldest", "relevance", "TemporalDiversity", "kit-best"]),
        (Best, ["kit-oldest", "kit-spread", "kit-best"]),
        (Tame, ["kit-oldest", "kit-spread", "kit-best", "Tame"]),
    ],
)
def test_stage_is_completed_to_a_policy(stage: type[Stage], names: list[str]) -> None:
    assert [stage.name for stage in complete(stage()).stages] == names


def test_scorer_whose_need_is_not_installed_is_refused() -> None:
    class Needy(Scorer):
        needs = ("nowhere",)

        @hookimpl
        def score(self, candidates: Candidates) -> None:
            pass

    with pytest.raises(PluginError, match="no stage plugin named 'nowhere' is installed"):
        complete(Needy())


def test_stage_of_no_kind_is_refused() -> None:
    with pytest.raises(
        PipelineError, match="cannot make a policy around 'Stage', a Stage; hand in a function"
    ):
        complete(Stage())


def test_subject_has_all_regions_and_positions_that_suit() -> None:
    window = Subject.of(SlidingWindow)
    assert {(layout.sink, layout.memory) for layout, _, _ in window.setups} == {(0, 0)}
    assert {positions for _, positions, _ in window.setups} == {"absolute", "block-relative"}
    assert {unit for _, _, unit in window.setups} == {"frame", "token", 1}
    assert {unit for _, _, unit in Subject.of(FadeMem).setups} == {"frame"}
    recalling = Subject.of(Tame, chunk=3)
    assert {positions for _, positions, _ in recalling.setups} == {"absolute", "block-relative"}
    assert all(layout.memory and layout.recent >= 3 for layout, _, _ in recalling.setups)


def test_subject_that_no_regions_suit_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"in any of 1 regions; .*'sliding-window' keeps"):
        Subject.of(SlidingWindow, regions=[Layout(1, 2, 3)])


def test_subject_of_a_recipe_has_its_options_and_new_stages_each_time(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: tethercache\nstages: {edit: [{use: tame, tau: 0.25}]}\n")
    subject = Subject.of(recipe)
    first, second = subject.make(), subject.make()
    assert first.editors[0].options == Tame.Options(tau=0.25)
    assert not set(map(id, first.stages)) & set(map(id, second.stages))


def test_conformance_is_a_test_a_rule_and_a_name() -> None:
    marks = {mark.args[0]: mark.args[1] for mark in conformance({"a": Spread, "b": Best}).pytestmark}
    assert list(marks["name"]) == ["a", "b"]
    assert marks["rule"] == RULES
    (mark,) = conformance(Spread).pytestmark
    assert mark.args == ("rule", RULES)


def test_three_lines_are_a_test(tmp_path: Path) -> None:
    """What a third party writes, run by a pytest of its own."""
    (tmp_path / "test_mine.py").write_text(
        textwrap.dedent(
            """
            from tetherflow.testing import conformance
            from tetherflow.testing.companions import Best
            test_best = conformance(Best, examples=1)
            """
        )
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert f"{len(RULES)} passed" in finished.stdout, finished.stdout


# --- the watch ----------------------------------------------------------------------------------------


def test_watch_records_every_call_and_what_came_out() -> None:
    policy = Pipeline(Oldest(), [Spread()], Best(), [Tame(name="tame")])
    watch = Watch(policy)
    rollout = Rollout(Layout(0, 2, 1), (1, 1, 1, 1))
    run(rollout.engine(policy), rollout.script())
    assert [(call.plugin, call.stage, call.layer, call.chunk) for call in watch.calls] == [
        ("kit-oldest", "evict", 0, 3),
        ("kit-oldest", "evict", 1, 3),
        *(
            (name, stage, layer, 3)
            for layer in (0, 1)
            for name, stage in (("kit-spread", "score"), ("kit-best", "select"), ("tame", "edit"))
        ),
    ]
    evict, _, score, select, edit = watch.calls[:5]
    assert evict.out["result.ranks"].tolist() == [[2]]
    assert score.out["result"].shape == (1, 3)
    assert select.out["result"].shape == (1, 2)
    assert set(edit.out) == {"draft.keys", "draft.values"}
    assert first_difference(watch.calls, watch.calls) is None


# --- imports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["hypothesis", "pytest"])
def test_kit_says_what_it_needs(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
import tetherflow.testing, tetherflow.testing.replay
from tetherflow.errors import TetherflowError
try:
    tetherflow.testing.conformance
except TetherflowError as error:
    assert str(error) == (
        "tetherflow.testing.conformance needs {missing}, which is not installed; "
        "`pip install 'tetherflow[test]'` brings it"
    ), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_the_kit_offers_is_there() -> None:
    assert all(hasattr(tetherflow.testing, name) for name in tetherflow.testing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tetherflow.testing.nothing  # noqa: B018
