"""Recipe files are plain data: nothing in one can execute, expand without bound, or be read twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tetherflow.errors import RecipeError
from tetherflow.recipe.source import parse_value, read_source


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "mine.yaml:3: key 'a' appears twice"),
        ("a: {b: 1, b: 2}\n", "mine.yaml:1: key 'b' appears twice"),
        (
            "a: !!python/object/apply:os.system [echo]\n",
            "mine.yaml:1: a value of type tag:yaml.org,2002:python",
        ),
        ("a: !!python/name:os.system\n", "mine.yaml:1: could not determine a constructor"),
        ("a: &x [1]\nb: *x\n", "mine.yaml:2: aliases (*name) are not allowed"),
        ("a: !!binary aGk=\n", "mine.yaml:1: a value of type tag:yaml.org,2002:binary is not allowed"),
        ("a: !!set {b}\n", "mine.yaml:1: a value of type tag:yaml.org,2002:set is not allowed"),
        ("a: [1\n", "mine.yaml"),
        ("1: a\n", "mine.yaml:1: key 1 is not a word"),
        ("- a\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("just words", "a recipe is a mapping"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: \x00\n", "not YAML"),
        ('a:\n- "x \\ud83d y"\n', "mine.yaml:2: 'x \\ud83d y' has half of a character"),
        ("---\na: 1\n---\nb: 2\n", "mine.yaml"),
    ],
)
def test_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_source(path)
    assert message in str(caught.value)


def test_refused_files(path: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_source(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_source(tmp_path)
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(RecipeError, match="not a text file in UTF-8"):
        read_source(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5e3", 1500.0),
        ("0.5", 0.5),
        ("5", 5),
        ("true", True),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("a red circle", "a red circle"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_value(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_every_value_knows_its_line(path: Path) -> None:
    path.write_text("a:\n  b: 1\n  c:\n    - 2\n    - d: 3\n")
    source = read_source(path)
    lines = {key: origin.text.rpartition(":")[2] for key, origin in source.origins.items()}
    assert lines["a", "b"] == "2"
    assert lines["a", "c", 0] == "4"
    assert lines["a", "c", 1, "d"] == "5"
    missing = source.origin(("a", "c", 1, "nothing"))
    assert missing is not None
    assert missing.text.endswith(":5")
