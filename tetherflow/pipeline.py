"""A cache policy, assembled from stage plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pluggy
import torch
from torch import Tensor

from tetherflow.cache.answers import Eviction, Placement, Revision, Segment, Selection, SideShape, SideStore
from tetherflow.cache.checks import Checks
from tetherflow.cache.events import Event
from tetherflow.cache.layout import Layout
from tetherflow.cache.slots import Slots
from tetherflow.cache.stage_data import Bank, Candidates, Draft
from tetherflow.errors import PipelineError, StageError, TetherflowError
from tetherflow.fitting import OPTIONAL_HOOKS, SHARED_HOOKS, check_fit, check_kinds, check_regions, uses_of
from tetherflow.hookspecs import PROJECT, StageHooks
from tetherflow.returned import (
    eviction_of,
    kind_of,
    metadata_of,
    placement_of,
    revision_of,
    score_of,
    segments_of,
    selection_of,
    units_of,
)
from tetherflow.schedule_fitting import Schedules, check_schedules
from tetherflow.scheduling import Scheduled
from tetherflow.stages import Editor, Evictor, Merger, Scorer, Selector, Stage

Shown = Slots | Candidates | Draft | Bank
FRAME_SECONDS: Final = 0.25
"""How long a latent frame is in a video of 16 frames a second."""


class Pipeline:
    """The stages of one cache policy, each called through a plugin manager of the pipeline's own.

    Every call names the plugin, so that an error says who raised it, where and when; and everything a plugin
    returns is checked before the engine acts on it.

    Args:
        evict: the evictor.
        score: scorers, in the order in which they run.
        select: the selector; required if there are scorers.
        edit: editors, in the order in which they run.
        merge: works what leaves into the bank.
        schedules: what moves the stages' options, by the stage's name and the option's.
        frame_seconds: how long a latent frame is in the video, for schedules over time.

    Raises:
        PipelineError: The stages do not make up a policy, or a schedule does not fit its option.
    """

    def __init__(
        self,
        evict: Evictor,
        score: Sequence[Scorer] = (),
        select: Selector | None = None,
        edit: Sequence[Editor] = (),
        merge: Merger | None = None,
        *,
        schedules: Schedules | None = None,
        frame_seconds: float = FRAME_SECONDS,
    ) -> None:
        check_kinds(evict, score, select, edit, merge)
        self.evictor = evict
        self.scorers = tuple(score)
        self.selector = select
        self.editors = tuple(edit)
        self.merger = merge
        self.schedules = schedules or {}
        self.frame_seconds = frame_seconds
        check_fit(evict, self.scorers, select, self.editors, self.stages)
        check_schedules(self.stages, self.schedules)
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(StageHooks)
        self._hooks: dict[str, list[Stage]] = {}  # which stages implement an optional hook
        for stage in self.stages:
            self._register(stage)
        own = [(stage, str(stage.stage)) for stage in self.stages]
        optional = [(stage, hook) for hook, stages in self._hooks.items() for stage in stages]
        self._calls = {(stage, hook): self._caller(stage, hook) for stage, hook in own + optional}
        self._scheduled = {
            stage: Scheduled(stage, self.schedules[stage.name], frame_seconds)
            for stage in self.stages
            if self.schedules.get(stage.name)
        }
        measures = any(scheduled.measures for scheduled in self._scheduled.values())
        self.uses = uses_of(self.stages, self._hooks, evict, select, measures)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order in which they run."""
        selector = () if self.selector is None else (self.selector,)
        merger = () if self.merger is None else (self.merger,)
        return (self.evictor, *self.scorers, *selector, *self.editors, *merger)

    @property
    def recalls(self) -> bool:
        """Whether evicted units compete for memory."""
        return self.selector is not None

    def check_layout(self, layout: Layout) -> None:
        """Ask every stage whether the regions, in latent frames, suit it.

        Raises:
            LayoutError: They do not suit a stage.
        """
        for stage in self.stages:
            stage.check_layout(layout)
        check_regions(self.uses, layout)

    def side_stores(self, shape: SideShape) -> Mapping[str, Mapping[str, SideStore]]:
        """What each stage keeps beside the cache, by the stage's name and the store's."""
        return {stage.name: stage.side_stores(shape) for stage in self.stages}

    def evict(self, slots: Slots, count: int, checks: Checks) -> Eviction:
        """Run the evictor and check its choice (see `StageHooks.evict`)."""
        stage = self.evictor
        value = self._call(stage, "evict", slots, checks, slots=slots, count=count)
        return eviction_of(value, stage, slots, count, _failure(stage, "evict", slots), checks)

    def score(self, candidates: Candidates, checks: Checks) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the scorers; returns the sum of their scores, float32 `[B, N]`, and each by name."""
        scores: dict[str, Tensor] = {}
        total: Tensor | None = None
        for stage in self.scorers:
            value = self._call(stage, "score", candidates, checks, candidates=candidates, scores=scores)
            score = score_of(value, candidates.origins, _failure(stage, "score", candidates), checks)
            scores[stage.name] = score
            total = score.float() if total is None else total + score.float()
        if total is None:
            total = torch.zeros_like(candidates.origins, dtype=torch.float32)
        elif len(self.scorers) == 1:
            total = total.clone()  # a selector may mask it, and the score is yet to be checked
        return total, scores

    def select(
        self, candidates: Candidates, score: Tensor, scores: dict[str, Tensor], checks: Checks
    ) -> Selection:
        """Run the selector; its choice comes back in time order."""
        stage = self.selector
        if stage is None:
            raise PipelineError("this pipeline has no selector, so there is nothing to select")
        given = {"candidates": candidates, "score": score, "scores": scores}
        value = self._call(stage, "select", candidates, checks, **given)
        return selection_of(value, stage, candidates, _failure(stage, "select", candidates), checks)

    def edit(self, draft: Draft, checks: Checks) -> None:
        """Run the editors on a draft."""
        for stage in self.editors:
            like = draft.keys
            self._call(stage, "edit", draft, checks, draft=draft)
            fail = _failure(stage, "edit", draft)
            for name, tensor in (("keys", draft.keys), ("values", draft.values)):
                more = stage is not self.editors[-1]  # that are to edit the same draft
                units_of(tensor, name, "the draft's", like.shape, like, fail, checks, changes=more)

    def merge(self, bank: Bank, checks: Checks) -> None:
        """Run the merger on copies of the bank."""
        stage = self.merger
        if stage is None:
            raise PipelineError("this pipeline has no merger, so nothing goes into the bank")
        like, noted = bank.keys, dict(bank.metadata)
        self._call(stage, "merge", bank, checks, bank=bank)
        fail = _failure(stage, "merge", bank)
        for name, tensor in (("keys", bank.keys), ("values", bank.values)):
            units_of(tensor, name, "the bank's", like.shape, like, fail, checks)
        shape = (like.shape[0], like.shape[1])
        bank.metadata = metadata_of(bank.metadata, noted, shape, fail, checks)

    def place(self, slots: Slots, checks: Checks) -> Placement:
        """Ask where in time a layer's units stand."""
        value, fail = self._ask(self._hooks["place"][0], "place", slots, checks)
        return placement_of(value, slots, fail, checks)

    def view(self, slots: Slots, checks: Checks) -> tuple[Segment, ...]:
        """Ask what each group of heads reads."""
        value, fail = self._ask(self._hooks["view"][0], "view", slots, checks)
        return segments_of(value, slots, fail, checks)

    def revise(self, slots: Slots, checks: Checks) -> list[Revision]:
        """Ask every stage that revises which units change after the context pass, in recipe order."""
        revisions = []
        for stage in self._hooks["revise"]:
            value, fail = self._ask(stage, "revise", slots, checks)
            if value is not None:
                revisions.append(revision_of(value, slots, fail, checks))
        return revisions

    def switch(self, layout: Layout, event: Event) -> int | None:
        """Ask how many of the newest latent frames stay at a prompt switch."""
        if "switch" not in self._hooks:
            return None
        (stage,) = self._hooks["switch"]
        value = self._call(stage, "switch", None, Checks(strict=True), layout=layout, event=event)
        if value is not None and (not isinstance(value, int) or value < 0):
            what = value if isinstance(value, int) else kind_of(value)
            raise _failure(stage, "switch", None)(f"returned {what}; expected 0 or more frames, or None")
        return value

    def call(self, stage: Stage, hook: str, given: Mapping[str, Any], checks: Checks) -> Any:
        """Call one stage's hook, with the stage's options as its schedules set them; nothing is caught.

        Args:
            stage: the stage.
            hook: its own, or an optional one that it implements.
            given: the hook's arguments.
            checks: takes the conditions on what is measured.
        """
        caller = self._calls[stage, hook]

        def run(**given: Any) -> Any:
            result = caller(**given)
            # Those two are not firstresult: a list of results, without what was None.
            return next(iter(result), None) if hook in ("score", "edit") else result

        if stage not in self._scheduled:
            return run(**given)
        at = next((one for one in given.values() if isinstance(one, Shown)), None)
        return self._scheduled[stage].call(run, given, _failure(stage, hook, at), checks)

    def _ask(
        self, stage: Stage, hook: str, slots: Slots, checks: Checks
    ) -> tuple[Any, Callable[[str], StageError]]:
        """Call a stage's optional hook; returns its result and what makes errors of it."""
        return self._call(stage, hook, slots, checks, slots=slots), _failure(stage, hook, slots)

    def _register(self, stage: Stage) -> None:
        if type(stage).__eq__ is not object.__eq__:
            raise PipelineError(
                f"plugin '{stage.name}' defines equality; pluggy needs stages that equal only themselves"
            )
        try:
            self.manager.register(stage, name=stage.name)
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PipelineError(f"plugin '{stage.name}' does not fit its hook: {error}") from error
        implemented = {hook.name for hook in self.manager.get_hookcallers(stage) or ()}
        if implemented - set(OPTIONAL_HOOKS) != {stage.stage}:
            found = ", ".join(sorted(implemented)) or "none"
            raise PipelineError(
                f"plugin '{stage.name}' must implement the hook '{stage.stage}' with @hookimpl, and beside "
                f"it none but {', '.join(OPTIONAL_HOOKS)}; it implements: {found}"
            )
        for hook in sorted(implemented & set(OPTIONAL_HOOKS)):
            others = self._hooks.setdefault(hook, [])
            if others and hook not in SHARED_HOOKS:
                raise PipelineError(
                    f"plugins '{others[0].name}' and '{stage.name}' both implement '{hook}'; a policy has one"
                )
            others.append(stage)

    def _caller(self, stage: Stage, hook: str) -> pluggy.HookCaller:
        """A caller of this stage's hook alone: its results and errors then belong to one plugin."""
        others = [other for other in self.stages if other is not stage]
        return self.manager.subset_hook_caller(hook, others)

    def _call(self, stage: Stage, hook: str, at: Shown | None, checks: Checks, **given: Any) -> Any:
        try:
            return self.call(stage, hook, given, checks)
        except TetherflowError as error:  # raised on purpose: its message says what to do
            raise _failure(stage, hook, at)(str(error)) from error
        except Exception as error:
            raise _failure(stage, hook, at)(f"raised {type(error).__name__}: {error}") from error


def _failure(stage: Stage, hook: str, at: Shown | None) -> Callable[[str], StageError]:
    """Makes errors that name a stage, its hook and where it ran."""
    layer, chunk = (None, None) if at is None else (at.layer, at.chunk)
    return lambda message: StageError(stage.name, hook, layer, chunk, message)
