"""Sees every hook call of a pipeline: what a stage was given, what came out, and what it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import attrs
import pluggy
import torch
from torch import Tensor

from tetherflow.cache import Candidates, Draft, Eviction
from tetherflow.errors import StageError
from tetherflow.pipeline import Pipeline

DRAFTED: Final = ("draft.keys", "draft.values", "bank.keys", "bank.values", "bank.metadata")
"""What a hook may write besides side stores: all else that it is given is not its own."""


_PLACE: Final = ("plugin", "stage", "layer", "chunk")


@attrs.frozen(eq=False)
class Call:
    """One call of one stage's hook.

    Attributes:
        plugin: the stage's name.
        stage: the hook.
        layer: index of the transformer layer.
        chunk: index of the chunk.
        given: the hook's arguments, by name; they are the engine's own and change after the call.
        out: copies of the tensors that came out, by name, each with the batch as first dimension: those
            returned, and those of the draft.
    """

    plugin: str
    stage: str
    layer: int
    chunk: int
    given: Mapping[str, Any]
    out: dict[str, Tensor]

    def failure(self, message: str) -> StageError:
        """An error that names the plugin and where it ran."""
        return StageError(self.plugin, self.stage, self.layer, self.chunk, message)


class Watch:
    """Records the hook calls of a pipeline from now on, through pluggy's own monitoring.

    Args:
        pipeline: the pipeline.
        before: called with each call before its hook runs, when nothing has come out yet.
        after: called with each call after its hook has returned.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        before: Callable[[Call], None] | None = None,
        after: Callable[[Call], None] | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self._before = before
        self._after = after
        pipeline.manager.add_hookcall_monitoring(self._about_to_run, self._has_run)

    def _about_to_run(self, hook: str, methods: Any, given: Mapping[str, Any]) -> None:
        if self._before is not None:
            self._before(_call(hook, methods, given, {}))

    def _has_run(
        self, outcome: pluggy.Result[Any], hook: str, methods: Any, given: Mapping[str, Any]
    ) -> None:
        if outcome.exception is not None:
            return
        result = outcome.get_result()
        # A hook that is not firstresult returns a list, of what one stage returned.
        result = result[0] if isinstance(result, list) and result else result
        out = dict(tensors_in(_listed(result, given), "result"))
        out |= {name: x for name, x in tensors_given(given) if may_write(name)}
        call = _call(hook, methods, given, {name: x.clone() for name, x in out.items()})
        if self.calls and _goes_on(self.calls[-1], call):
            self.calls[-1] = _joined(self.calls[-1], call)
        else:
            self.calls.append(call)
        if self._after is not None:
            self._after(call)


def tensors_in(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a value holds, with its path; looks into attrs classes, mappings and sequences."""
    if isinstance(value, Tensor):
        yield name, value
    elif attrs.has(type(value)):
        for field in attrs.fields(cast(Any, type(value))):
            yield from tensors_in(getattr(value, field.name), f"{name}.{field.alias}")
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from tensors_in(one, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from tensors_in(one, f"{name}[{index}]")


def may_write(name: str) -> bool:
    """Whether a hook may write to the tensor of this path among its arguments."""
    return name.startswith(DRAFTED) or ".sides[" in name


def tensors_given(given: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor among a hook's arguments, with its path, such as `draft.keys`."""
    for name, value in given.items():
        yield from tensors_in(value, name)


def first_difference(
    ours: list[Call],
    theirs: list[Call],
    rows: tuple[int, int] | None = None,
    agree: Callable[[Tensor, Tensor], bool] | None = None,
) -> Call | None:
    """The first of our calls whose outcome is another in theirs; None if all agree.

    Args:
        ours: calls of one run.
        theirs: calls of another run of as many chunks.
        rows: compare just this sample of ours with that of theirs; all samples if omitted.
        agree: whether two tensors count as the same; if they are, bit for bit, if omitted.
    """
    agree = agree or same
    for a, b in zip(ours, theirs, strict=True):
        if a.out.keys() != b.out.keys():
            return a
        for name in a.out:
            x, y = a.out[name], b.out[name]
            if rows is not None:
                x, y = x[rows[0]], y[rows[1]]
            if not agree(x, y):
                return a
    return None


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN counting as equal to NaN."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return torch.equal(x, y) or (x.is_floating_point() and torch.allclose(x, y, 0, 0, equal_nan=True))


def _call(hook: str, methods: Any, given: Mapping[str, Any], out: dict[str, Tensor]) -> Call:
    at = next(value for value in given.values() if hasattr(value, "layer") and hasattr(value, "chunk"))
    return Call(methods[0].plugin_name, hook, at.layer, at.chunk, dict(given), out)


def _goes_on(batch: Call, sample: Call) -> bool:
    """Whether a call shows one more sample of a batch whose samples a stage is shown one by one."""
    shown = (one for one in sample.given.values() if isinstance(one, Candidates | Draft))
    place = next((one.sample for one in shown), None)
    same_call = all(getattr(batch, name) == getattr(sample, name) for name in _PLACE)
    return bool(place) and same_call


def _joined(batch: Call, sample: Call) -> Call:
    """The call of a batch, as far as it is known, with one more sample's."""
    given = {
        name: torch.cat([x, sample.given[name]]) if isinstance(x, torch.Tensor) else x
        for name, x in batch.given.items()
    }
    out = {name: torch.cat([x, sample.out[name]]) for name, x in batch.out.items()}
    return attrs.evolve(batch, given=given, out=out)


def _listed(result: object, given: Mapping[str, Any]) -> object:
    """The result, with a range of ranks written out as what it stands for: the same ranks in every sample."""
    if isinstance(result, Eviction) and isinstance(result.ranks, range):
        origins = given["slots"].origins
        ranks = torch.tensor(list(result.ranks), device=origins.device)
        return attrs.evolve(result, ranks=ranks.expand(origins.shape[0], -1))
    return result
