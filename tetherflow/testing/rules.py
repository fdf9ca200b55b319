"""The rules of the conformance suite: each takes a subject, and raises if its policy breaks the rule.

A rule sees a policy through the public engine, and through what pluggy shows of its hook calls; what a call
returns is checked by the pipeline besides, in every rule.
"""

from __future__ import annotations

from typing import Final, get_args

import attrs
import hypothesis.strategies as st
import torch
from hypothesis.stateful import run_state_machine_as_test
from pydantic import ValidationError
from torch import Tensor

from tetherflow.errors import ConformanceError, StageError, TetherflowError
from tetherflow.pipeline import Pipeline
from tetherflow.testing.device import stays_on_the_device
from tetherflow.testing.guard import Guard
from tetherflow.testing.machine import EngineMachine
from tetherflow.testing.script import Material, run
from tetherflow.testing.strategies import Rollout
from tetherflow.testing.subject import Subject
from tetherflow.testing.trial import Rule, one_thread, over_rollouts, trial_settings
from tetherflow.testing.watch import Call, Watch, first_difference, same

MATERIALS: Final[tuple[Material, ...]] = get_args(Material)
TYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
NEAR_TIE: Final = 1e-4
"""Scores that lie nearer to one another, in parts of the largest, may change places by rounding."""


@over_rollouts()
def returns_the_right_shapes_and_types(subject: Subject, rollout: Rollout) -> None:
    """Every result has the shape, type and device that its hook asks for, in caches of any type."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for dtype in TYPES:
            _run_noted(subject, attrs.evolve(rollout, device=device, dtype=dtype), f"in {dtype} on {device}")


@over_rollouts()
def returns_finite_numbers(subject: Subject, rollout: Rollout) -> None:
    """No score or edit is infinite or NaN: not for frames without variance, equal, zero or huge ones."""
    for material in MATERIALS:
        _run_noted(subject, attrs.evolve(rollout, material=material), f"with {material} keys and values")


def _run_noted(subject: Subject, rollout: Rollout, where: str) -> None:
    """Run a rollout; an error says in which variant of it."""
    try:
        run(rollout.engine(subject.make()), rollout.script())
    except TetherflowError as error:
        error.add_note(where)
        raise


@over_rollouts()
def decides_the_same_again(subject: Subject, rollout: Rollout) -> None:
    """The same rollout gives the same results bit for bit, and a stage remembers nothing of another one."""
    first = _calls(subject.make(), rollout, seed=1)
    if call := first_difference(first, _calls(subject.make(), rollout, seed=2)):
        raise call.failure(
            "gave another result when the same rollout was run again; draw random numbers, if any, from a "
            "generator that is seeded with what is given (layer, chunk, origins)"
        )
    used = subject.make()
    other = attrs.evolve(rollout, seeds=tuple(seed + 20_000 for seed in rollout.seeds))
    run(other.engine(used), other.script()[:-1])
    if call := first_difference(first, _calls(used, rollout, seed=1)):
        raise call.failure("gave another result after another rollout; a stage keeps nothing between calls")


@over_rollouts(batch=(2, 3))
def treats_samples_apart(subject: Subject, rollout: Rollout) -> None:
    """A sample's results do not depend on the other samples of its batch, nor on its place among them."""
    together = _calls(subject.make(), rollout)
    for row in (0, len(rollout.seeds) - 1):
        seeds = tuple(seed if i == row else seed + 20_000 for i, seed in enumerate(rollout.seeds))
        beside_others = _calls(subject.make(), attrs.evolve(rollout, seeds=seeds))
        if call := first_difference(together, beside_others, (row, row)):
            raise call.failure(
                f"gave another result for sample {row} when only its neighbours in the batch had changed; "
                "reduce over no dimension that holds samples (the first)"
            )
        alone = _calls(subject.make(), attrs.evolve(rollout, seeds=(rollout.seeds[row],)))
        call = first_difference(together, alone, (row, 0), nearly_same)
        if call is not None and not _near_tie(together, call, row):
            raise call.failure(
                f"gave another result for sample {row} of the batch than for the same sample alone; "
                "a sample's place in the batch must not matter"
            )


@over_rollouts()
def writes_only_its_draft(subject: Subject, rollout: Rollout) -> None:
    """A hook changes a draft's keys and values, and nothing else that it is given or that the cache holds."""
    policy = subject.make()
    engine = rollout.engine(policy)
    guard = Guard(engine)
    Watch(policy, before=guard.remember, after=guard.compare)
    run(engine, rollout.script())


@over_rollouts()
def continues_from_a_snapshot(subject: Subject, rollout: Rollout) -> None:
    """A rollout goes on from a snapshot bit for bit: here, after a detour, and in another engine."""
    script = rollout.script()
    first, rest = script[:-2], script[-2:]
    policy = subject.make()
    engine = rollout.engine(policy)
    run(engine, first)
    snapshot = engine.snapshot()
    watch = Watch(policy)
    expected = run(engine, rest)
    went_on = list(watch.calls)
    elsewhere = subject.make()
    for place, other, who in (("here", engine, policy), ("elsewhere", rollout.engine(elsewhere), elsewhere)):
        other.restore(snapshot)
        watch = Watch(who)
        found = run(other, rest)
        if call := first_difference(went_on, watch.calls):
            raise call.failure(
                f"gave another result when a snapshot was continued {place}; a stage keeps nothing between "
                "calls, so that a snapshot of the cache holds everything"
            )
        if not all(same(a, b) for a, b in zip(expected.attended, found.attended, strict=True)):
            raise ConformanceError(
                f"attention differs when a snapshot is continued {place}, though every stage returned the "
                "same: something that the view depends on is missing from the snapshot"
            )


def keeps_the_engines_invariants(subject: Subject) -> None:
    """Under this policy the engine keeps its invariants, in whatever order chunks and snapshots come."""

    class PolicyMachine(EngineMachine):
        def open(self, data: st.DataObject) -> None:
            rollout = data.draw(subject.rollouts())
            self.engine = rollout.engine(subject.make(), strict=data.draw(st.booleans()))
            self.model = rollout.model
            self.generators = [torch.Generator().manual_seed(seed) for seed in rollout.seeds]

        def chunk_of(self, frames: int) -> int:
            return subject.chunk or super().chunk_of(frames)

    with one_thread():
        run_state_machine_as_test(PolicyMachine, settings=trial_settings(subject))


def describes_itself(subject: Subject) -> None:
    """Every stage says what it does, and its options survive being written into a recipe and read again."""
    for stage in subject.make().stages:
        where = (stage.name, stage.stage, None, None)
        if not (type(stage).__doc__ or "").strip():
            raise StageError(*where, "has no docstring; its first line is what `tetherflow plugins` shows")
        try:
            again = stage.Options.model_validate_json(stage.options.model_dump_json(), strict=True)
        except ValidationError as error:
            raise StageError(*where, f"has options that no recipe can hold: {error}") from error
        if again != stage.options:
            raise StageError(*where, "has options that come back from a recipe as others")
        if stage.Options.model_config.get("extra") != "forbid":
            raise StageError(*where, "takes options that it does not know; derive Options from StageOptions")


RULES: Final[tuple[Rule, ...]] = (
    describes_itself,
    returns_the_right_shapes_and_types,
    returns_finite_numbers,
    stays_on_the_device,
    decides_the_same_again,
    treats_samples_apart,
    writes_only_its_draft,
    continues_from_a_snapshot,
    keeps_the_engines_invariants,
)


def nearly_same(x: Tensor, y: Tensor) -> bool:
    """Whether numbers agree up to rounding, and indices exactly."""
    if not x.is_floating_point():
        return torch.equal(x, y)
    return torch.allclose(x, y, rtol=1e-3, atol=1e-4)


def _calls(policy: Pipeline, rollout: Rollout, seed: int = 0) -> list[Call]:
    """All hook calls of a rollout, whose global random numbers begin at a seed."""
    torch.manual_seed(seed)
    watch = Watch(policy)
    run(rollout.engine(policy), rollout.script())
    return watch.calls


def _near_tie(calls: list[Call], until: Call, row: int) -> bool:
    """Whether, up to a call, two scores that a selector was given lay so near that rounding decides."""
    for call in calls:
        if "score" in call.given:
            score = call.given["score"][row].sort().values
            if float(score.diff().min()) < NEAR_TIE * (1 + float(score.abs().max())):
                return True
        if call is until:
            break
    return False
