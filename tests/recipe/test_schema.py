"""The JSON schema that editors use."""

from __future__ import annotations

import json

import pytest

from tetherflow.recipe import json_schema

pytestmark = pytest.mark.usefixtures("toy")


def test_schema_knows_sections_plugins_and_ranges() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert {"extends", "backbone", "cache", "stages", "rollout", "runtime", "output"} <= set(
        schema["properties"]
    )
    assert schema["additionalProperties"] is False
    editors = schema["$defs"]["edit-plugin"]["anyOf"]
    assert editors[0] == {"enum": ["tame"]}
    assert editors[1]["properties"]["use"] == {"const": "tame"}
    number, schedule = editors[1]["properties"]["tau"]["anyOf"]
    assert (number["minimum"], number["maximum"]) == (0, 1)
    assert schedule == {"$ref": "#/$defs/schedule"}
    backbones = schema["properties"]["backbone"]["anyOf"]
    assert "toy" in backbones[0]["enum"]


def test_schema_leaves_out_what_is_broken() -> None:
    scorers = json_schema()["$defs"]["score-plugin"]["anyOf"]
    assert {"raises", "relevance", "temporal-diversity"} <= set(scorers[0]["enum"])
    assert not {"broken"} & set(scorers[0]["enum"])


def test_schema_knows_what_may_be_scheduled_and_how() -> None:
    definitions = json_schema()["$defs"]

    def takes(stage: str, name: str, option: str) -> list[str]:
        (entry,) = (each for each in definitions[f"{stage}-plugin"]["anyOf"] if each.get("title") == name)
        field = entry["properties"][option]
        kinds = [kind.get("type") or kind.get("$ref", "") for kind in field.get("anyOf", [field])]
        return [str(kind).removeprefix("#/$defs/") for kind in kinds]

    assert takes("edit", "tame", "tau") == ["number", "schedule"]
    assert takes("score", "heavy-hitter", "queries") == ["integer", "null", "time-schedule"]
    assert takes("select", "fademem", "window") == ["integer"]  # fixed
    assert takes("merge", "memrope", "adaptive") == ["boolean"]
    every, timed = (
        {entry["title"] for entry in definitions[kind]["anyOf"]} for kind in ("schedule", "time-schedule")
    )
    assert {"ramp", "drift-distance"} <= every
    assert "ramp" in timed
    assert "drift-distance" not in timed
    (ramp,) = (entry for entry in definitions["time-schedule"]["anyOf"] if entry["title"] == "ramp")
    assert list(ramp["properties"]) == ["use", "from", "to", "start", "seconds"]


def test_every_reference_leads_somewhere() -> None:
    schema = json_schema()
    text = json.dumps(schema)
    found = {part.split('"')[0] for part in text.split("#/$defs/")[1:]}
    assert found <= set(schema["$defs"])


def test_a_file_may_leave_out_any_section() -> None:
    schema = json_schema()
    assert "required" not in schema
    assert all("required" not in schema["$defs"][name] for name in ("Stages", "Rollout", "Cache"))


def test_every_plugin_says_what_it_does_and_names_no_path_of_this_machine() -> None:
    schema = json_schema()
    entries = [*schema["properties"]["backbone"]["anyOf"], *schema["$defs"]["evict-plugin"]["anyOf"]]
    described = {entry["title"]: entry["description"] for entry in entries if "title" in entry}
    assert described["sliding-window"].startswith("Drop the oldest units")
    assert described["mini"].startswith("A miniature of Self-Forcing")
    (mini,) = (entry for entry in entries if entry.get("title") == "mini")
    assert "default" not in mini["properties"]["weights"]


def test_stages_of_one_plugin_are_no_longer_lists() -> None:
    stages = json_schema()["$defs"]["Stages"]["properties"]
    limits = {
        name: (kinds[1].get("minItems", 0), kinds[1].get("maxItems"))
        for name, kinds in ((name, stage["anyOf"]) for name, stage in stages.items())
    }
    assert limits == {
        "evict": (1, 1), "score": (0, None), "select": (0, 1), "edit": (0, None), "merge": (0, 1)
    }  # fmt: skip
