"""Whether a schedule fits the option that it is to set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from pydantic import ValidationError

from tetherflow.errors import PipelineError
from tetherflow.fitting import OPTIONAL_HOOKS
from tetherflow.hookspecs import PROJECT
from tetherflow.schedules import Schedule, SignalSchedule, TimeSchedule
from tetherflow.stages import Stage, StageOptions

Schedules = Mapping[str, Mapping[str, Schedule]]
"""Schedules by the name of the stage and of its option."""

MEASURED: Final = ("score", "select", "edit")
"""Stages whose options may be driven by a signal: those that are shown what comes to memory."""


def misfit(stage: type[Stage], option: str, schedule: Schedule) -> str | None:
    """What speaks against scheduling an option of a stage so; None if nothing does."""
    kind = number_kind(stage.Options, option)
    if kind is None:
        return "takes no number, so it cannot be scheduled"
    if option in stage.fixed:
        return "is read once, before the first chunk, so it cannot be scheduled"
    if not isinstance(schedule, TimeSchedule | SignalSchedule):
        return (
            f"schedule '{schedule.name}' is neither a TimeSchedule nor a SignalSchedule; derive it from one"
        )
    low, high = schedule.bounds
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        return f"schedule '{schedule.name}' says that it moves between {low} and {high}; expected low, high"
    if isinstance(schedule, TimeSchedule):
        return None
    if kind == "integer":
        return (
            f"takes a whole number, which '{schedule.name}' cannot give: a measured signal stays on the "
            "device, and every chunk would wait for it; use a schedule over time"
        )
    if stage.stage not in MEASURED:
        return (
            f"belongs to stage '{stage.stage}', which is not shown what '{schedule.name}' measures; use a "
            f"schedule over time, or schedule a plugin of {', '.join(MEASURED)}"
        )
    others = [hook for hook in OPTIONAL_HOOKS if hasattr(getattr(stage, hook, None), f"{PROJECT}_impl")]
    if others:
        return (
            f"may be read in the plugin's '{others[0]}', too, which is not shown what '{schedule.name}' "
            "measures; use a schedule over time"
        )
    return None


@cache
def number_kind(options: type[StageOptions], option: str) -> str | None:
    """Whether an option takes a `number` or an `integer`, or null beside it; None if something else."""
    field = options.model_json_schema(by_alias=False).get("properties", {}).get(option, {})
    kinds = {kind.get("type") for kind in field.get("anyOf", [field])} - {"null"}
    return str(kinds.pop()) if kinds in ({"number"}, {"integer"}) else None


def at_bound(stage: type[Stage], schedules: Mapping[str, Schedule], which: int) -> dict[str, float]:
    """Scheduled options at their least (0) or largest (1) values, whole numbers where they take those."""
    bounds = {option: schedule.bounds[which] for option, schedule in schedules.items()}
    return {option: number_for(stage, option, value) for option, value in bounds.items()}


def check_schedules(stages: Sequence[Stage], schedules: Schedules) -> None:
    """Refuse schedules that do not fit the stages' options.

    Raises:
        PipelineError: There is no such stage or option, or the option does not take what the schedule gives.
    """
    known = {stage.name: stage for stage in stages}
    for name, options in schedules.items():
        if name not in known:
            raise PipelineError(f"there is no plugin '{name}' whose options could be scheduled")
        stage = known[name]
        for option, schedule in options.items():
            if reason := misfit(type(stage), option, schedule):
                raise PipelineError(f"plugin '{name}': option '{option}' {reason}")
        for which in (0, 1):
            values = stage.options.model_dump(by_alias=True) | at_bound(type(stage), options, which)
            try:
                stage.Options.model_validate(values)
            except ValidationError as error:
                raise PipelineError(f"plugin '{name}' refuses what its schedules give: {error}") from error


def number_for(stage: type[Stage], option: str, value: float) -> float:
    """A value as an option takes it: rounded if it takes whole numbers."""
    return round(value) if number_kind(stage.Options, option) == "integer" else float(value)
