"""What is wrong with a recipe, in words: where, which value, and what would be right."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import attrs
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tetherflow.errors import RecipeError
from tetherflow.plugins import nearest
from tetherflow.recipe.model import DEVICE
from tetherflow.recipe.prompts import KINDS, NOT_BLANK
from tetherflow.recipe.section import Misfit
from tetherflow.recipe.source import Key, Source

_KINDS: Final = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_LIMITS: Final = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_RANGE_ERRORS: Final = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}


@attrs.frozen
class Problem:
    """One thing that is wrong.

    Attributes:
        key: where in the recipe.
        message: what is wrong there, and what would be right.
    """

    key: Key
    message: str


def recipe_error(name: str, source: Source, problems: Iterable[Problem]) -> RecipeError:
    """Put all problems of a recipe into one error, each with the file and line it comes from."""
    lines = []
    for problem in problems:
        origin = source.newest(problem.key)
        where = f"{origin.text}: " if origin and origin.text else ""
        dotted = ".".join(map(str, problem.key))
        lines.append(f"{where}{dotted}: {problem.message}" if dotted else f"{where}{problem.message}")
    if len(lines) == 1:
        return RecipeError(lines[0])
    return RecipeError("\n  ".join([f"recipe '{name}' has {len(lines)} problems:", *lines]))


def explain(error: ValidationError, model: type[BaseModel], prefix: Key = ()) -> list[Problem]:
    """Translate pydantic's findings into problems.

    Args:
        error: what pydantic found.
        model: the model that was validated, whose schema knows the allowed ranges and keys.
        prefix: where in the recipe the model's data stands.
    """
    schema = model.model_json_schema()
    problems = []
    for details in error.errors(include_url=False):
        if details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
            continue  # only because entries that are wrong, of which there is more to say, do not count
        cause = details.get("ctx", {}).get("error")
        inner = cause.key if isinstance(cause, Misfit) else ()
        place = (step for step in details["loc"] if step not in KINDS)
        problems.append(Problem((*prefix, *place, *inner), _message(details, schema)))
    return problems


def schema_at(schema: dict[str, Any], key: Key) -> dict[str, Any]:
    """The part of a JSON schema that describes one place; empty if it says nothing of it."""
    here: Any = schema
    for step in (None, *key):
        if step in KINDS:
            here = next(kind for kind in here["oneOf"] if kind["type"] == KINDS[str(step)])
        elif step is not None:
            here = (
                here.get("items", {}) if isinstance(step, int) else here.get("properties", {}).get(step, {})
            )
        while "$ref" in here or "anyOf" in here:
            if "$ref" in here:
                here = schema["$defs"][here["$ref"].rpartition("/")[2]]
            else:
                kinds = [kind for kind in here["anyOf"] if kind.get("type") != "null"]
                if len(kinds) != 1:
                    return {}
                here = kinds[0]
    return dict(here)


def _message(details: ErrorDetails, schema: dict[str, Any]) -> str:
    kind, key, value = details["type"], details["loc"], details["input"]
    here = schema_at(schema, key)
    if kind == "missing":
        return f"is missing{_expected(here)}"
    if kind == "extra_forbidden":
        known = schema_at(schema, key[:-1]).get("properties", {})
        return f"unknown key{nearest(str(key[-1]), known)} (known: {', '.join(known) or 'none'})"
    if kind in ("value_error", "assertion_error"):
        return str(details["ctx"]["error"])
    if kind in _RANGE_ERRORS:
        return f"{_show(value)} is out of range; allowed: {_range(here) or details['msg']}"
    if kind in ("literal_error", "enum"):
        choices = [str(choice) for choice in here.get("enum", [here.get("const")])]
        return f"{_show(value)} is none of {', '.join(choices)}{nearest(str(value), choices)}"
    if kind == "too_short":
        unit = "entry" if here.get("type") == "array" else "characters"
        return f"needs at least {details['ctx']['min_length']} {unit}"
    if kind == "string_pattern_mismatch" and here.get("pattern") == NOT_BLANK:
        return "is blank; expected words"
    if kind == "string_pattern_mismatch" and here.get("pattern") == DEVICE:
        return f"{_show(value)} is none of auto, cpu, cuda, cuda:N"
    if kind.endswith(("_type", "_parsing", "_from_float")) and here.get("type") in _KINDS:
        return f"{_show(value)} is not {_KINDS[here['type']]}{_expected(here)}"
    message = details["msg"]
    return f"{_show(value)}: {message[:1].lower()}{message[1:]}"


def _expected(schema: dict[str, Any]) -> str:
    """The allowed values as the end of a message; empty if the schema does not limit them."""
    if "enum" in schema:
        return f"; expected one of {', '.join(map(str, schema['enum']))}"
    limits = _range(schema)
    return f"; allowed: {limits}" if limits else ""


def _range(schema: dict[str, Any]) -> str:
    """The range of a number, in words."""
    return " and ".join(f"{word} {schema[name]}" for name, word in _LIMITS.items() if name in schema)


def _show(value: object) -> str:
    """A value as a recipe spells it, shortened."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
