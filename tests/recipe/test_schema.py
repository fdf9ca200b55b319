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
    tau = editors[1]["properties"]["tau"]
    assert (tau["minimum"], tau["maximum"]) == (0, 1)
    backbones = schema["properties"]["backbone"]["anyOf"]
    assert "toy" in backbones[0]["enum"]


def test_schema_leaves_out_what_is_broken() -> None:
    scorers = json_schema()["$defs"]["score-plugin"]["anyOf"]
    assert scorers[0] == {"enum": ["participation", "raises", "relevance", "temporal-diversity"]}


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
