"""JSON schema of a recipe file, for editors."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from pydantic import BaseModel

from tetherflow.errors import PluginError
from tetherflow.plugins import BACKBONES, POLICIES, installed, load_backbone, load_stage
from tetherflow.recipe.model import PATH_FORMATS, Recipe
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
            plugin = load_stage(name, stage) if stage else load_backbone(name)
        except PluginError:
            continue  # broken, or of another stage
        names.append(name)
        options: type[BaseModel] = plugin.Options
        own = options.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions.update({f"{name}.{key}": value for key, value in own.pop("$defs", {}).items()})
        # A default path belongs to this installation.
        fields = {
            key: {word: value for word, value in field.items() if word != "default" or not _is_path(field)}
            for key, field in own.get("properties", {}).items()
        }
        own["properties"] = {"use": {"const": name}, **fields}
        if paragraph := inspect.cleandoc(plugin.__doc__ or "").partition("\n\n")[0]:
            own["description"] = " ".join(paragraph.split())
        mappings.append({**own, "title": name, "required": ["use"], "additionalProperties": False})
    return [{"enum": names}, *mappings]


def _is_path(field: dict[str, Any]) -> bool:
    return any(kind.get("format") in PATH_FORMATS for kind in (field, *field.get("anyOf", ())))


def _without_required(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "required"}
