"""Build hook of the documentation: writes the recipe reference from the models and the shipped recipes."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from typing import Any

from tetherflow.recipe import bundled_recipes, json_schema

MARKER = "<!-- generated: recipe reference -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker by the generated reference."""
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown


def reference() -> str:
    """The recipe reference: sections' keys, plugins' and schedules' options, shipped recipes."""
    schema = _schema()
    definitions = schema["$defs"]
    lines: list[str] = []
    for key, entry in schema["properties"].items():
        name = _reference(entry)
        if name is None:
            lines += [f"## `{key}`", "", entry.get("description", ""), ""]
            if key == "backbone":
                lines += _plugins(entry, definitions)
            continue
        lines += [f"## `{key}`", "", definitions[name].get("description", ""), ""]
        if key == "stages":
            for stage, choice in definitions[name]["properties"].items():
                lines += [f"### `stages.{stage}`", "", choice.get("description", ""), ""]
                lines += _plugins(definitions[f"{stage}-plugin"], definitions)
        else:
            lines += _table(definitions[name], definitions)
    lines += ["## Schedules", "", "What may stand in place of a number, `option: {use: NAME, …}`.", ""]
    lines += _plugins(definitions["schedule"], definitions)
    lines += ["## Shipped recipes", ""]
    for path in bundled_recipes().values():
        lines += [f"### {path.stem}", "", "```yaml", path.read_text().strip(), "```", ""]
    return "\n".join(lines)


def options_of(*plugins: str) -> str:
    """What some plugins do, in a line each, and their options."""
    definitions = _schema()["$defs"]
    stages = definitions["Stages"]["properties"]
    found = [_plugins(definitions[f"{stage}-plugin"], definitions, plugins) for stage in stages]
    return "\n".join(line for lines in found for line in lines)


@cache
def _schema() -> dict[str, Any]:
    """The schema of recipes, generated once."""
    return json_schema()


def _reference(entry: dict[str, Any]) -> str | None:
    for candidate in (entry, *entry.get("allOf", [])):
        if "$ref" in candidate:
            return str(candidate["$ref"]).rsplit("/", 1)[-1]
    return None


def _plugins(
    choice: dict[str, Any], definitions: dict[str, Any], names: Collection[str] | None = None
) -> list[str]:
    """A paragraph and a table of options for each plugin of a stage, or for those named."""
    lines: list[str] = []
    for option in choice["anyOf"]:
        if "title" in option and (names is None or option["title"] in names):
            lines += [f"**`{option['title']}`** {option.get('description', '')}", ""]
            options = {name: value for name, value in option["properties"].items() if name != "use"}
            if options:
                lines += _table({"properties": options}, definitions)
    return lines


def _table(section: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return [*head, *_rows(section, definitions, ""), ""]


def _rows(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> list[str]:
    """A row a key; those of a mapping within come after it, under their dotted names."""
    rows = []
    for key, entry in section["properties"].items():
        inner = definitions.get(_reference(entry) or "")
        value = entry.get("default")
        default = (
            "" if value is None or inner else f"`{value if isinstance(value, str) else json.dumps(value)}`"
        )
        meaning = entry.get("description", "").replace("|", "\\|").replace("\n", " ")
        rows.append(f"| `{prefix}{key}` | {_type(entry, definitions)} | {default} | {meaning} |")
        if inner:
            rows += _rows(inner, definitions, f"{prefix}{key}.")
    return rows


def _type(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    if name := _reference(entry):
        return {"schedule": "schedule", "time-schedule": "schedule over time"}.get(name, "mapping")
    options = entry.get("anyOf", entry.get("oneOf"))
    if options:
        return " or ".join(_type(option, definitions) for option in options if option.get("type") != "null")
    if "enum" in entry:
        return " or ".join(f"`{value}`" for value in entry["enum"])
    kind = str(entry.get("type", "any"))
    if kind == "array" and "items" in entry:
        kind = "list of " + _type(entry["items"], definitions)
    elif kind == "array" and entry.get("prefixItems"):
        kind = f"list of {len(entry['prefixItems'])} {_type(entry['prefixItems'][0], definitions)}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {entry[word]}" for word, sign in limits.items() if word in entry]
    return f"{kind} {', '.join(bounds)}".strip()
