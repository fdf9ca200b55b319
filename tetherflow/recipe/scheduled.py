"""Options of a recipe's stages that are scheduled, `tau: {use: NAME, …}`: read, checked and built."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from tetherflow.errors import PluginError
from tetherflow.plugins import load_schedule
from tetherflow.recipe.model import PluginEntry, is_entry
from tetherflow.recipe.problems import Problem, explain
from tetherflow.recipe.source import Key
from tetherflow.schedule_fitting import at_bound, misfit
from tetherflow.schedules import Schedule
from tetherflow.stages import Stage, StageOptions


def build(entry: PluginEntry, stage: type[Stage]) -> tuple[StageOptions, dict[str, Schedule]]:
    """A validated entry's options, those that are scheduled at their least, and what schedules them.

    Raises:
        PluginError: A schedule has gone since the recipe was read.
    """
    schedules = {option: _build(inner) for option, inner in entry.schedules.items()}
    plain = {name: value for name, value in entry.options.items() if name not in schedules}
    text = json.dumps(plain | at_bound(stage, schedules, 0))
    return stage.Options.model_validate_json(text, strict=True), schedules


def read_schedules(
    stage: type[Stage], options: dict[str, Any], key: Key, problems: list[Problem]
) -> dict[str, Schedule]:
    """Read the schedules among an entry's options; what is wrong with them joins the problems.

    Args:
        stage: the plugin whose options they are.
        options: as the recipe has them; those of unknown names are left to be refused with all others.
        key: where they stand in the recipe.
        problems: takes what is wrong.
    """
    found = {}
    for option, value in options.items():
        if option not in stage.Options.model_fields or not is_entry(value):
            continue
        schedule = _read(value, (*key, option), problems)
        if schedule is not None:
            reason = misfit(stage, option, schedule)
            if reason is None:
                found[option] = schedule
            else:
                problems.append(Problem((*key, option), reason))
    return found


def written(schedule: Schedule) -> dict[str, Any]:
    """A schedule as a recipe spells it, with every default filled in."""
    return {"use": schedule.name, **schedule.options.model_dump(mode="json", by_alias=True)}


def _read(value: dict[str, Any], key: Key, problems: list[Problem]) -> Schedule | None:
    try:
        return _build(PluginEntry.model_validate(value))
    except PluginError as error:
        problems.append(Problem((*key, "use"), str(error)))
    except ValidationError as error:
        problems.extend(explain(error, load_schedule(value["use"]).Options, key))
    return None


def _build(entry: PluginEntry) -> Schedule:
    cls = load_schedule(entry.use)
    return cls(cls.Options.model_validate_json(entry.options_json(), strict=True), name=entry.use)
