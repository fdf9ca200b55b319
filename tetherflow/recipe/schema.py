"""JSON schema of a recipe file, for editors."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from tetherflow.errors import PluginError
from tetherflow.plugins import BACKBONES, POLICIES, installed, load_backbone, load_stage
from tetherflow.recipe.model import Recipe
from tetherflow.stages import StageName


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
    stages = definitions["Stages"]["properties"]
    for stage in get_args(StageName):
        definitions[f"{stage}-plugin"] = {"anyOf": _entries(POLICIES, stage, definitions)}
        one = {"$ref": f"#/$defs/{stage}-plugin"}
        several: dict[str, Any] = {"type": "array", "items": one}
        if stage in ("evict", "select"):
            several |= {"minItems": 1, "maxItems": 1}
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
            options: type[BaseModel] = (load_stage(name, stage) if stage else load_backbone(name)).Options
        except PluginError:
            continue  # broken, or of another stage
        names.append(name)
        own = options.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions.update({f"{name}.{key}": value for key, value in own.pop("$defs", {}).items()})
        own["properties"] = {"use": {"const": name}, **own.get("properties", {})}
        mappings.append({**own, "title": name, "required": ["use"], "additionalProperties": False})
    return [{"enum": names}, *mappings]


def _without_required(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "required"}
