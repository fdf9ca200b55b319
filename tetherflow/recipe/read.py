"""From a recipe file to a validated recipe, with every problem told at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from os.path import expanduser  # which leaves `~name` as it is where there is no such user
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tetherflow.errors import PluginError, PromptError
from tetherflow.plugins import load_backbone, load_stage
from tetherflow.recipe.bundled import find_recipe
from tetherflow.recipe.layers import read_layers
from tetherflow.recipe.model import PATH_FORMATS, Recipe
from tetherflow.recipe.parts import check_parts
from tetherflow.recipe.problems import Problem, explain, recipe_error, schema_at
from tetherflow.recipe.prompts import read_prompts
from tetherflow.recipe.scheduled import read_schedules, written
from tetherflow.recipe.source import Key, Source
from tetherflow.recipe.timetable import check_times
from tetherflow.schedule_fitting import at_bound
from tetherflow.schedules import Schedule
from tetherflow.stages import Stage, StageName


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check all of it: the file, its plugins and their options, and that the parts fit.

    Args:
        name: a recipe file's path, or the name of a shipped recipe.
        overrides: `key.key=value`, applied last.

    Returns:
        The recipe with every default filled in, paths absolute and prompts read.

    Raises:
        RecipeError: Something is wrong; one message names each problem, its place and what would be right.
    """
    path = find_recipe(str(name), folder=Path.cwd())
    source = read_layers(path, overrides)
    problems: list[Problem] = []
    data = dict(source.data)
    data = _read_prompts(_plain_entries(data, problems), source, problems)
    data = _fill_options(data, source, problems)
    faulty = {problem.key for problem in problems}
    try:
        recipe = Recipe.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems += [problem for problem in explain(error, Recipe) if problem.key not in faulty]
    else:
        if not problems:
            problems += [*check_parts(recipe), *check_times(recipe)]
    if problems:
        raise recipe_error(path.name, source, problems)
    output = recipe.output.model_copy(
        update={
            "folder": str(Path(expanduser(recipe.output.folder)).absolute()),
            "name": recipe.output.name or path.stem,
        }
    )
    return recipe.model_copy(update={"output": output})


def _plain_entries(data: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Bring the ways to write plugin entries to one: a mapping; for `score` and `edit` a list of them."""
    if "backbone" in data:
        data["backbone"] = _entry(data["backbone"], ("backbone",), problems)
    stages = data.get("stages")
    if not isinstance(stages, dict):
        return data
    stages = dict(stages)
    for stage in ("evict", "select", "merge"):
        entries = stages.get(stage)
        if isinstance(entries, list):
            if len(entries) > 1 or (stage == "evict" and not entries):
                problems.append(
                    Problem(("stages", stage), f"takes exactly one plugin; {len(entries)} are given")
                )
            entries = entries[0] if entries else None
        if entries is not None:
            stages[stage] = _entry(entries, ("stages", stage), problems)
        elif stage in stages:
            del stages[stage]
    for stage in ("score", "edit"):
        entries = stages.get(stage)
        entries = [] if entries is None else entries if isinstance(entries, list) else [entries]
        stages[stage] = [
            _entry(entry, ("stages", stage, index), problems) for index, entry in enumerate(entries)
        ]
    return {**data, "stages": stages}


def _entry(value: Any, key: Key, problems: list[Problem]) -> dict[str, Any]:
    entry = {"use": value} if isinstance(value, str) else value
    if isinstance(entry, dict) and isinstance(entry.get("use"), str):
        return entry
    problems.append(Problem(key, f"expected a plugin's name, or {{use: NAME, …}}; got {value!r}"))
    return {"use": ""}


def _fill_options(data: dict[str, Any], source: Source, problems: list[Problem]) -> dict[str, Any]:
    """Validate each entry's options by its plugin's own model, and fill in their defaults."""

    def fill(entry: dict[str, Any], key: Key, load: Callable[[str], type[Any]]) -> dict[str, Any]:
        if not entry["use"]:
            return entry  # already reported
        options = {name: value for name, value in entry.items() if name != "use"}
        try:
            plugin = load(entry["use"])
        except PluginError as error:
            problems.append(Problem((*key, "use"), str(error)))
            return entry
        model: type[BaseModel] = plugin.Options
        options = _anchor(options, model.model_json_schema(), key, source)
        schedules: dict[str, Schedule] = {}
        found: list[Problem] = []
        if issubclass(plugin, Stage):
            schedules = read_schedules(plugin, options, key, found)
        try:
            filled = _validated(model, options, [at_bound(plugin, schedules, end) for end in (0, 1)])
        except ValidationError as error:
            reported = {problem.key[: len(key) + 1] for problem in found}
            found += [problem for problem in explain(error, model, key) if problem.key not in reported]
        if found:
            problems.extend(found)
            return entry
        # A default path belongs to this installation; spelt out, it would tie the recipe to this machine.
        chosen = filled.model_fields_set
        own = {
            name
            for name in model.model_fields
            if name not in chosen and isinstance(getattr(filled, name), Path)
        }
        scheduled = {option: written(schedule) for option, schedule in schedules.items()}
        plain = filled.model_dump(mode="json", by_alias=True, exclude=own)
        return {"use": entry["use"], **plain, **scheduled}

    def stage_loader(stage: StageName) -> Callable[[str], type[Any]]:
        return lambda name: load_stage(name, stage)

    filled = dict(data)
    if "backbone" in data:
        filled["backbone"] = fill(data["backbone"], ("backbone",), load_backbone)
    if isinstance(data.get("stages"), dict):
        stages = filled["stages"] = dict(data["stages"])
        for stage in get_args(StageName):
            entries, key = stages.get(stage), ("stages", stage)
            if isinstance(entries, dict):
                stages[stage] = fill(entries, key, stage_loader(stage))
            elif isinstance(entries, list):
                stages[stage] = [
                    fill(entry, (*key, index), stage_loader(stage)) for index, entry in enumerate(entries)
                ]
    return filled


def _validated(
    model: type[BaseModel], options: dict[str, Any], bounds: Iterable[dict[str, float]]
) -> BaseModel:
    """Options as their plugin's model takes them, with those that are scheduled at each end of their range.

    Raises:
        ValidationError: They are not valid, at the first end at which they are not.
    """
    filled = [model.model_validate_json(json.dumps(options | end), strict=True) for end in bounds]
    return filled[0]


def _anchor(options: dict[str, Any], schema: dict[str, Any], key: Key, source: Source) -> dict[str, Any]:
    """Make paths among a plugin's options absolute: each is relative to the file that it is written in."""
    return {
        name: _absolute(value, (*key, name), source)
        if isinstance(value, str) and schema_at(schema, (name,)).get("format") in PATH_FORMATS
        else value
        for name, value in options.items()
    }


def _absolute(value: str, key: Key, source: Source) -> str:
    origin = source.origin(key)
    return str((origin.folder if origin else Path.cwd()) / expanduser(value))


def _read_prompts(data: dict[str, Any], source: Source, problems: list[Problem]) -> dict[str, Any]:
    """Replace `prompts_file` by the prompts it holds, so that a resolved recipe stands alone."""
    rollout = data.get("rollout")
    if not isinstance(rollout, dict):
        return data
    rollout = dict(rollout)
    first = rollout.get("first_frames")
    if isinstance(first, str):
        rollout["first_frames"] = _absolute(first, ("rollout", "first_frames"), source)
    name = rollout.get("prompts_file")
    if isinstance(name, str):
        key = ("rollout", "prompts_file")
        if "prompts" in rollout:
            problems.append(Problem(key, "give either 'prompts' or 'prompts_file'; both are given"))
        try:
            rollout["prompts"] = read_prompts(Path(_absolute(name, key, source)))
        except PromptError as error:
            problems.append(Problem(key, str(error)))
            rollout["prompts"] = ["unread"]
        del rollout["prompts_file"]
    return {**data, "rollout": rollout}
