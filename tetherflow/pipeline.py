"""A cache policy, assembled from stage plugins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pluggy
import torch
from torch import Tensor

from tetherflow.cache.checks import Checks, is_finite
from tetherflow.cache.layout import Layout
from tetherflow.cache.stage_data import Candidates, Draft, Eviction, Slots
from tetherflow.errors import PipelineError, StageError, TetherflowError
from tetherflow.hookspecs import PROJECT, StageHooks
from tetherflow.stages import Editor, Evictor, Scorer, Selector, Stage

Result = TypeVar("Result")


class Pipeline:
    """The stages of one cache policy, each called through a plugin manager of the pipeline's own.

    Every call names the plugin, so that an error says who raised it, where and when; and everything a plugin
    returns is checked before the engine acts on it.

    Args:
        evict: the evictor.
        score: scorers, in the order in which they run.
        select: the selector; required if there are scorers.
        edit: editors, in the order in which they run.

    Raises:
        PipelineError: The stages do not make up a policy.
    """

    def __init__(
        self,
        evict: Evictor,
        score: Sequence[Scorer] = (),
        select: Selector | None = None,
        edit: Sequence[Editor] = (),
    ) -> None:
        self.evictor = evict
        self.scorers = tuple(score)
        self.selector = select
        self.editors = tuple(edit)
        self._check_cardinality()
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(StageHooks)
        for stage in self.stages:
            self._register(stage)
        self._calls = {stage: self._caller(stage) for stage in self.stages}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in the order in which they run."""
        selector = () if self.selector is None else (self.selector,)
        return (self.evictor, *self.scorers, *selector, *self.editors)

    @property
    def recalls(self) -> bool:
        """Whether evicted units compete for memory."""
        return self.selector is not None

    @property
    def edits(self) -> bool:
        """Whether newcomers are edited before they enter memory."""
        return bool(self.editors)

    def check_layout(self, layout: Layout) -> None:
        """Ask every stage whether the regions suit it.

        Raises:
            LayoutError: They do not suit a stage.
        """
        for stage in self.stages:
            stage.check_layout(layout)

    def evict(self, slots: Slots, count: int, checks: Checks) -> Eviction:
        """Run the evictor and check its choice (see `StageHooks.evict`)."""
        stage = self.evictor
        eviction: Eviction = self._call(stage, slots, slots=slots, count=count)
        fail = _failure(stage, slots)
        if not isinstance(eviction, Eviction):
            raise fail(f"returned {_kind(eviction)}; expected an Eviction")
        if eviction.to != stage.destination:
            raise fail(f"sends units to '{eviction.to}' but declares destination '{stage.destination}'")
        sink = len(slots.layout.sink_of(slots.held))
        # With the chunk, these newest units fill the recent region.
        stay = min(max(0, slots.layout.recent - slots.incoming), slots.held - sink - count)
        end = slots.held - stay
        if isinstance(eviction.ranks, range):
            ranks = eviction.ranks
            if len(ranks) != count or ranks.step != 1:
                raise fail(f"returned {ranks}; expected {count} ranks in ascending order, step 1")
            if ranks.start < sink or ranks.stop > end:
                raise fail(f"evicts {ranks}; ranks must lie from {sink}, past the sink, below {end}")
            return eviction
        ranks_tensor = _indices(eviction.ranks, (slots.origins.shape[0], count), slots.origins, fail)
        ordered = ranks_tensor.sort(dim=1).values
        checks.require(
            (ordered[:, 0] >= sink).all() & (ordered[:, -1] < end).all(),
            lambda: fail(
                f"evicts a rank out of range; ranks must lie from {sink}, past the sink, below {end}"
            ),
        )
        checks.require((ordered.diff(dim=1) > 0).all(), lambda: fail("evicts a unit twice"))
        return Eviction(ordered.clamp(sink, end - 1), eviction.to)

    def score(self, candidates: Candidates, checks: Checks) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the scorers; returns the sum of their scores, float32 `[B, N]`, and each by name."""
        scores: dict[str, Tensor] = {}
        total = torch.zeros_like(candidates.origins, dtype=torch.float32)
        for stage in self.scorers:
            score: Tensor = self._call(stage, candidates, candidates=candidates, scores=scores)
            fail = _failure(stage, candidates)
            if not isinstance(score, Tensor) or score.shape != total.shape or not score.is_floating_point():
                raise fail(f"returned {_kind(score)}; expected floating point {list(total.shape)}")
            if score.device != total.device:
                raise fail(f"returned a score on {score.device}; expected {total.device}")
            checks.require(is_finite(score), _later(fail, "returned a score that is not finite"))
            scores[stage.name] = score
            total = total + score.float()
        return total, scores

    def select(
        self, candidates: Candidates, score: Tensor, scores: dict[str, Tensor], checks: Checks
    ) -> Tensor:
        """Run the selector; returns the chosen candidates in time order, int64 `[B, capacity]`."""
        stage = self.selector
        if stage is None:
            raise PipelineError("this pipeline has no selector, so there is nothing to select")
        chosen: Tensor = self._call(stage, candidates, candidates=candidates, score=score, scores=scores)
        fail = _failure(stage, candidates)
        batch, count = candidates.origins.shape
        chosen = _indices(chosen, (batch, candidates.capacity), candidates.origins, fail)
        ordered = chosen.sort(dim=1).values
        checks.require(
            (ordered[:, 0] >= 0).all() & (ordered[:, -1] < count).all(),
            lambda: fail(f"returned an index out of range; indices must lie from 0 below {count}"),
        )
        checks.require((ordered.diff(dim=1) > 0).all(), lambda: fail("returned an index twice"))
        return ordered.clamp(0, count - 1)

    def edit(self, draft: Draft, checks: Checks) -> None:
        """Run the editors on a draft."""
        for stage in self.editors:
            shape, dtype, device = draft.keys.shape, draft.keys.dtype, draft.keys.device
            self._call(stage, draft, draft=draft)
            fail = _failure(stage, draft)
            for name, tensor in (("keys", draft.keys), ("values", draft.values)):
                at_home = isinstance(tensor, Tensor) and tensor.device == device
                if not at_home or tensor.shape != shape or tensor.dtype != dtype:
                    raise fail(
                        f"made the draft's {name} {_kind(tensor)}; expected {dtype} {list(shape)} on {device}"
                    )
                checks.require(is_finite(tensor), _later(fail, f"made {name} that are not finite"))

    def _check_cardinality(self) -> None:
        expected: list[tuple[object, type[Stage]]] = [(self.evictor, Evictor), (self.selector, Selector)]
        expected += [(scorer, Scorer) for scorer in self.scorers]
        expected += [(editor, Editor) for editor in self.editors]
        for stage, kind in expected:
            if not isinstance(stage, kind) and not (kind is Selector and stage is None):
                name = getattr(stage, "name", repr(stage))
                raise PipelineError(
                    f"'{name}' is no {kind.__name__} and cannot serve as stage '{kind.stage}'"
                )
        names = Counter(stage.name for stage in self.stages)
        for name, count in names.items():
            if count > 1:
                raise PipelineError(
                    f"plugin '{name}' appears {count} times; each stage plugin may appear once"
                )
        before: set[str] = set()
        for scorer in self.scorers:
            if missing := [name for name in scorer.needs if name not in before]:
                raise PipelineError(
                    f"scorer '{scorer.name}' builds on '{missing[0]}', which must come before it"
                )
            before.add(scorer.name)
        if self.selector is None and (self.scorers or self.editors):
            idle = ", ".join(f"'{stage.name}'" for stage in (*self.scorers, *self.editors))
            raise PipelineError(
                f"{idle} would never run: a pipeline with scorers or editors needs one selector"
            )
        if self.selector is not None and self.evictor.destination != "memory":
            raise PipelineError(
                f"selector '{self.selector.name}' would never run: evictor '{self.evictor.name}' drops what "
                "leaves; use one that sends it to memory, such as 'recall-window'"
            )
        if self.selector is None and self.evictor.destination == "memory":
            raise PipelineError(
                f"evictor '{self.evictor.name}' sends units to memory, but there is no selector"
            )

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
        implemented = [hook.name for hook in self.manager.get_hookcallers(stage) or ()]
        if implemented != [stage.stage]:
            found = ", ".join(implemented) or "none"
            raise PipelineError(
                f"plugin '{stage.name}' must implement the hook '{stage.stage}' with @hookimpl, no other; "
                f"it implements: {found}"
            )

    def _caller(self, stage: Stage) -> pluggy.HookCaller:
        """A caller of this stage's hook alone: its results and errors then belong to one plugin."""
        others = [other for other in self.stages if other is not stage]
        return self.manager.subset_hook_caller(stage.stage, others)

    def _call(self, stage: Stage, at: Slots | Candidates | Draft, **arguments: Any) -> Any:
        try:
            result = self._calls[stage](**arguments)
        except TetherflowError as error:  # raised on purpose: its message says what to do
            raise _failure(stage, at)(str(error)) from error
        except Exception as error:
            raise _failure(stage, at)(f"raised {type(error).__name__}: {error}") from error
        if stage.stage in ("score", "edit"):  # not firstresult: a list of results, without what was None
            return result[0] if result else None
        return result


def _failure(stage: Stage, at: Slots | Candidates | Draft) -> Callable[[str], StageError]:
    """Makes errors that name a stage and where it ran."""
    layer, chunk = at.layer, at.chunk
    return lambda message: StageError(stage.name, stage.stage, layer, chunk, message)


def _later(fail: Callable[[str], StageError], message: str) -> Callable[[], StageError]:
    return lambda: fail(message)


def _indices(
    value: object, shape: tuple[int, int], like: Tensor, fail: Callable[[str], StageError]
) -> Tensor:
    """Check that a plugin returned integer indices of a shape, on the right device; returns them as int64."""
    if (
        not isinstance(value, Tensor)
        or value.shape != shape
        or value.is_floating_point()
        or value.is_complex()
    ):
        raise fail(f"returned {_kind(value)}; expected integers {list(shape)}")
    if value.dtype == torch.bool or value.device != like.device:
        raise fail(f"returned {_kind(value)}; expected integers {list(shape)} on {like.device}")
    return value.to(torch.int64)


def _kind(value: object) -> str:
    """What a plugin returned, in words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device}"
    return "nothing" if value is None else f"a {type(value).__name__}"
