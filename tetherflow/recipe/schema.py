"""JSON schema of a recipe file, for editors."""

from __future__ import annotations

import inspect
from typing import Any, Final, get_args

from pydantic import BaseModel

from tetherflow.backbone import Backbone
from tetherflow.errors import PluginError
from tetherflow.plugins import (
    BACKBONES,
    POLICIES,
    installed,
    load_backbone,
    load_schedule,
    load_stage,
)
from tetherflow.recipe.model import PATH_FORMATS, Recipe
from tetherflow.schedule_fitting import number_kind
from tetherflow.schedules import Schedule, TimeSchedule
from tetherflow.stages import Stage, StageName

_SCHEDULES: Final = {"number": "schedule", "integer": "time-schedule"}
"""Definitions of what may stand in place of a number: a whole one can only be scheduled over time."""
_ABOUT: Final = frozenset({"title", "description", "default"})
"""What a schema says of an option whatever its type."""


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe file, with the options of every plugin installed here.

    No section is required, since a file may extend another. Plugins that cannot be loaded are left out.
    """
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_without_required(schema),
        "title": "Tetherflow recipe",
    }
    del definitions["PluginEntry"]
    for name, definition in definitions.items():
        definitions[name] = _without_required(definition)
    extends = {
        "type": "string",
        "description": "Another recipe: a shipped one's name, or a path relative to this file.",
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    schema["properties"]["backbone"] = {
        "description": schema["properties"]["backbone"]["description"],
        "anyOf": _entries(BACKBONES, None, definitions),
    }
    _define_schedules(definitions)
    stages = definitions["Stages"]["properties"]
    for stage in get_args(StageName):
        definitions[f"{stage}-plugin"] = {"anyOf": _entries(POLICIES, stage, definitions)}
        one = {"$ref": f"#/$defs/{stage}-plugin"}
        several: dict[str, Any] = {"type": "array", "items": one}
        if stage in ("evict", "select", "merge"):
            several |= {"minItems": int(stage == "evict"), "maxItems": 1}
        stages[stage] = {
            "description": stages[stage]["description"],
            "anyOf": [one, several, {"type": "null"}],
        }
    return schema


def _entries(group: str, stage: StageName | None, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """What may stand where a plugin is named: its bare name, or a mapping with its own options."""
    names, mappings = [], []
    for name in installed(group):
        try:
            plugin = load_stage(name, stage) if stage else load_backbone(name)
        except PluginError:
            continue  # broken, or of another stage
        names.append(name)
        mappings.append(_mapping(name, plugin, definitions))
    return [{"enum": names}, *mappings]


def _define_schedules(definitions: dict[str, Any]) -> None:
    """Define every schedule, and apart those over time."""
    for kind, base in zip(_SCHEDULES.values(), (Schedule, TimeSchedule), strict=True):
        found = []
        for name in installed(POLICIES):
            try:
                schedule = load_schedule(name)
            except PluginError:
                continue  # broken, or a stage
            if issubclass(schedule, base):
                found.append(_mapping(name, schedule, definitions))
        definitions[kind] = {"anyOf": found}


def _mapping(
    name: str, plugin: type[Stage | Backbone | Schedule], definitions: dict[str, Any]
) -> dict[str, Any]:
    """A plugin as a mapping with its own options."""
    options: type[BaseModel] = plugin.Options
    own = options.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    definitions.update({f"{name}.{key}": value for key, value in own.pop("$defs", {}).items()})
    # A default path belongs to this installation.
    fields = {
        key: {word: value for word, value in field.items() if word != "default" or not _is_path(field)}
        for key, field in own.get("properties", {}).items()
    }
    if issubclass(plugin, Stage):
        fields = {key: _or_scheduled(plugin, key, field) for key, field in fields.items()}
    own["properties"] = {"use": {"const": name}, **fields}
    if paragraph := inspect.cleandoc(plugin.__doc__ or "").partition("\n\n")[0]:
        own["description"] = " ".join(paragraph.split())
    return {**own, "title": name, "required": ["use"], "additionalProperties": False}


def _or_scheduled(stage: type[Stage], option: str, field: dict[str, Any]) -> dict[str, Any]:
    """What an option takes, and a schedule beside it if it may be scheduled."""
    kind = number_kind(stage.Options, option)
    if kind is None or option in stage.fixed:
        return field
    about = {word: value for word, value in field.items() if word in _ABOUT}
    plain = {word: value for word, value in field.items() if word not in _ABOUT}
    return {**about, "anyOf": [*plain.get("anyOf", [plain]), {"$ref": f"#/$defs/{_SCHEDULES[kind]}"}]}


def _is_path(field: dict[str, Any]) -> bool:
    return any(kind.get("format") in PATH_FORMATS for kind in (field, *field.get("anyOf", ())))


def _without_required(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "required"}
