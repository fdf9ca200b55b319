"""Planted faults: the conformance suite catches each, and says what is wrong and whose it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
import torch
from pydantic import ConfigDict
from torch import Tensor

from tetherflow import (
    Candidates,
    Draft,
    Editor,
    Eviction,
    Evictor,
    Scorer,
    Selector,
    Slots,
    Stage,
    StageOptions,
    hookimpl,
)
from tetherflow.cache import CacheEngine
from tetherflow.errors import StageError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import RULES, Subject
from tetherflow.testing.companions import Best, Oldest, Spread
from tetherflow.testing.device import HostReadWarning, stays_on_the_device
from tetherflow.testing.rules import (
    continues_from_a_snapshot,
    decides_the_same_again,
    describes_itself,
    returns_finite_numbers,
    returns_the_right_shapes_and_types,
    treats_samples_apart,
    writes_only_its_draft,
)
from tetherflow.testing.trial import Rule
from tetherflow_policies.sink_window import SinkWindow


class RepeatsAnIndex(Selector):
    """Keeps the best candidate twice, and so one candidate too few."""

    @hookimpl
    def select(self, candidates: Candidates, score: Tensor) -> Tensor:
        best = score.topk(candidates.capacity, dim=1).indices
        return torch.cat([best[:, :1], best[:, :-1]], dim=1)


class WritesThrough(Editor):
    """Reaches up the call stack for the engine, and edits what is in its cache."""

    @hookimpl
    def edit(self, draft: Draft) -> None:
        frame = sys._getframe()
        while not isinstance(frame.f_locals.get("self"), CacheEngine):
            assert frame.f_back is not None
            frame = frame.f_back
        frame.f_locals["self"].layers[draft.layer].values.mul_(0.5)


class ComparesSamples(Scorer):
    """Scores relative to the whole batch."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        size = candidates.mean_keys.norm(dim=-1).mean(dim=-1)
        return size / size.mean()


class OverflowsHalf(Scorer):
    """Sums squares in float16, which large keys overflow: infinity less infinity is NaN."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        energy = candidates.mean_keys.half().square().sum(dim=(2, 3))
        return energy - energy.mean(dim=1, keepdim=True)


class LosesAFrame(Evictor):
    """Lets one frame go that nobody asked for."""

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        return Eviction(range(slots.layout.sink, slots.layout.sink + count + 1))


class NamesAFrameTwice(Evictor):
    """Names one unit twice, so that another would be overwritten unnamed."""

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        ranks = torch.arange(count, device=slots.origins.device) + slots.layout.sink
        ranks[-1] = slots.layout.sink
        return Eviction(ranks.expand(slots.origins.shape[0], -1))


# The rest show what each rule is there for.


class Unsized(Scorer):
    """Returns a score a head, and none in a cache of half precision."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        keys = candidates.read_keys()
        return keys.mean(dim=(2, 4)) if keys.dtype == torch.float16 else keys.mean(dim=(2, 3, 4))


class WidensTheDraft(Editor):
    """Hands a draft back in float32, whatever the cache stores."""

    @hookimpl
    def edit(self, draft: Draft) -> None:
        draft.keys = draft.keys.float()


class MixesDevices(Scorer):
    """Weights the channels by numbers that it makes on the CPU."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return (candidates.mean_keys * torch.ones(candidates.head_dim)).sum(dim=(2, 3))


class AnswersFromTheCpu(Scorer):
    """Scores candidates by their number, on the CPU."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        batch, count = candidates.origins.shape
        return torch.arange(count).float().expand(batch, -1)


class ReadsOnTheHost(Scorer):
    """Looks at a number in Python."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        size = candidates.mean_keys.norm(dim=-1).mean(dim=-1)
        return -size if candidates.origins.max().item() % 2 else size


class RollsDice(Scorer):
    """Scores at random."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return torch.rand(candidates.origins.shape)


class Remembers(Scorer):
    """Adds up what it has seen in the same layer."""

    def __init__(self, options: StageOptions | None = None, *, name: str | None = None) -> None:
        super().__init__(options, name=name)
        self.seen: dict[int, Tensor] = {}

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        new = candidates.mean_keys.square().mean(dim=(1, 2, 3)).sum()
        self.seen[candidates.layer] = new + self.seen.get(candidates.layer, torch.zeros(()))
        return candidates.mean_keys.mean(dim=(2, 3)) * self.seen[candidates.layer]


class CountsRows(Scorer):
    """Prefers old frames in the first sample, new ones in the others."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        place = torch.arange(len(candidates.origins), device=candidates.origins.device)[:, None]
        return torch.where(place == 0, -candidates.origins, candidates.origins).float()


class SpoilsScores(Scorer):
    """Changes the score that another scorer has given."""

    @hookimpl
    def score(self, candidates: Candidates, scores: Mapping[str, Tensor]) -> Tensor:
        scores["kit-spread"].mul_(2)
        return scores["kit-spread"]


class SpoilsCandidates(Scorer):
    """Normalises the keys that it was given in place."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        candidates.mean_keys.div_(2)
        return candidates.mean_keys.mean(dim=(2, 3))


class Silent(Scorer):
    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return candidates.mean_keys.mean(dim=(2, 3))


class SpoilsQueries(Scorer):
    """Scales the pass's queries in place."""

    needs_query = True

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        candidates.query.div_(2)
        return candidates.mean_keys.mean(dim=(2, 3))


class SpoilsTheMeanQuery(SpoilsQueries):
    """Scales the mean of the pass's queries in place."""

    reads_mean_query = True

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        candidates.mean_query.div_(2)
        return candidates.mean_keys.mean(dim=(2, 3))


class SpoilsQueriesAfterwards(Silent):
    """Scales the pass's queries in place, after it."""

    @hookimpl
    def revise(self, slots: Slots) -> None:
        slots.query.div_(2)


class ForgetsByLot(SinkWindow):
    """Lets as many frames stay at a prompt switch as a die says."""

    @hookimpl
    def switch(self) -> int:
        return int(torch.randint(99, ()))


class RemembersTheSwitch(SinkWindow):
    """Jumps in time for good once the prompt has switched, and remembers by itself that it has."""

    jump = 0

    @hookimpl
    def place(self, slots: Slots) -> list[int]:
        if slots.event is not None:
            self.jump = 9
        return [rank + (self.jump if rank in slots.current else 0) for rank in range(slots.held)]


class TakesAnything(Editor):
    """Takes options that it does not know."""

    class Options(StageOptions):
        model_config = ConfigDict(extra="ignore")

    @hookimpl
    def edit(self) -> None:
        pass


def beside_spread() -> Pipeline:
    """A policy whose second scorer spoils the first one's score."""
    return Pipeline(Oldest(), [Spread(), SpoilsScores()], Best())


THROUGH = "wrote through to the live cache: stored values of layer 0 changed during the call"
NEIGHBOURS = (
    "gave another result for sample 0 when only its neighbours in the batch had changed; reduce over no"
)
PLANTED: list[tuple[type[Stage], Rule, str]] = [
    (RepeatsAnIndex, returns_finite_numbers, "returned an index twice"),
    (WritesThrough, writes_only_its_draft, THROUGH),
    (ComparesSamples, treats_samples_apart, NEIGHBOURS),
    (OverflowsHalf, returns_finite_numbers, "returned a score that is not finite"),
    (LosesAFrame, returns_finite_numbers, r"returned range.*; expected \d+ ranks in ascending order"),
    (NamesAFrameTwice, returns_finite_numbers, "evicts a unit twice"),
    (Unsized, returns_the_right_shapes_and_types, r"returned torch.float16 \[.*; expected floating point"),
    (WidensTheDraft, returns_the_right_shapes_and_types, "made the draft's keys torch.float32 .*; expected"),
    (MixesDevices, stays_on_the_device, "mixes tensors of two devices .*; make new tensors with device="),
    (
        AnswersFromTheCpu,
        stays_on_the_device,
        "made result on cpu, when everything it was given was elsewhere",
    ),
    (RollsDice, decides_the_same_again, "gave another result when the same rollout was run again; draw"),
    (Remembers, decides_the_same_again, "gave another result after another rollout; a stage keeps nothing"),
    (Remembers, continues_from_a_snapshot, "gave another result when a snapshot was continued here; a stage"),
    (CountsRows, treats_samples_apart, "gave another result for sample 1 of the batch than .* sample alone"),
    (ForgetsByLot, decides_the_same_again, "gave another result when the same rollout was run again; draw"),
    (RemembersTheSwitch, decides_the_same_again, "gave another result after another rollout; a stage keeps"),
    (RemembersTheSwitch, continues_from_a_snapshot, "gave another result when a snapshot was continued"),
    (SpoilsScores, writes_only_its_draft, r"changed scores\['kit-spread'\], which is not its own; change a"),
    (SpoilsCandidates, writes_only_its_draft, "changed candidates.mean_keys, which is not its own"),
    (SpoilsQueries, writes_only_its_draft, "changed candidates.query, which is not its own"),
    (SpoilsTheMeanQuery, writes_only_its_draft, "changed candidates.mean_query, which is not its own"),
    (SpoilsQueriesAfterwards, writes_only_its_draft, "changed slots.query, which is not its own"),
    (Silent, describes_itself, "has no docstring; its first line is what `tetherflow plugins` shows"),
    (
        TakesAnything,
        describes_itself,
        "takes options that it does not know; derive Options from StageOptions",
    ),
]

OTHER_HOOKS: dict[type[Stage], str] = {
    ForgetsByLot: "switch",
    RemembersTheSwitch: "place",
    SpoilsQueriesAfterwards: "revise",
}
"""Hooks at fault that are not the stage's own."""


@pytest.mark.parametrize(("stage", "rule", "text"), PLANTED)
def test_planted_fault_is_caught(stage: type[Stage], rule: Rule, text: str) -> None:
    """By the rule that is there for it, with an error that names the plugin and says what is wrong."""
    with pytest.raises(StageError, match=text) as caught:
        rule(Subject.of(beside_spread if stage is SpoilsScores else stage))
    hook = OTHER_HOOKS.get(stage, stage.stage)
    assert (caught.value.plugin, caught.value.stage) == (stage.__name__, hook)


def test_no_rule_is_without_a_fault() -> None:
    """The engine's invariants have faults of their own, in `test_machine.py`."""
    untested = set(RULES) - {rule for _, rule, _ in PLANTED}
    assert [rule.__name__ for rule in untested] == ["keeps_the_engines_invariants"]


def test_reading_on_the_host_is_allowed_with_a_warning() -> None:
    with pytest.warns(HostReadWarning, match="'ReadsOnTheHost' may read values of a tensor on the host"):
        stays_on_the_device(Subject.of(ReadsOnTheHost, examples=2))


def test_failure_shows_the_rollout_that_found_it() -> None:
    with pytest.raises(StageError) as caught:
        returns_finite_numbers(Subject.of(OverflowsHalf))
    notes = "\n".join(caught.value.__notes__)
    assert "rollout=Rollout(layout=Layout(" in notes
    assert "with huge keys and values" in notes
