"""The worked example of "Write a policy in an afternoon": what the page says of it is so."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.toys import register
from tetherflow.errors import StageError
from tetherflow.recipe import load_recipe
from tetherflow.testing import RULES, Subject
from tetherflow.testing import pytest_plugin as fixtures
from tetherflow.testing.rules import returns_finite_numbers, treats_samples_apart

PAGE = (Path(__file__).parent.parent / "docs" / "writing-a-policy.md").read_text()


def block(start: str) -> str:
    """The first block of the page that holds a piece of text."""
    return next(text for text in re.findall(r"^```[^\n]*\n(.*?)^```", PAGE, re.M | re.S) if start in text)


def written(correct: bool) -> str:
    """The scorer's module, as it is written first or as it is corrected."""
    first = block("class Novelty")
    return first[: first.rindex("        return")] + block("scale = distance") if correct else first


@pytest.fixture
def novelty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The corrected package, as if it were installed."""
    (tmp_path / "tetherflow_novelty.py").write_text(written(correct=True))
    register(tmp_path, "tetherflow-novelty", "[tetherflow.policies]\nnovelty = tetherflow_novelty:Novelty\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tetherflow_novelty", raising=False)
    return tmp_path


def load(folder: Path, correct: bool) -> Any:
    module = folder / "scorer.py"
    module.write_text(written(correct))
    return runpy.run_path(str(module))["Novelty"]


def test_suite_finds_what_the_page_says(tmp_path: Path) -> None:
    subject = Subject.of(load(tmp_path, correct=False))
    failed = []
    for rule in RULES:
        try:
            rule(subject)
        except StageError as error:
            failed.append(rule)
            said = re.sub(r"chunk \d+", "chunk 2", str(error))
            assert said in block("plugin 'Novelty'").replace("in the\nbatch", "in the batch")
    assert failed == [returns_finite_numbers, treats_samples_apart]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_corrected_scorer_conforms(rule: Any, tmp_path: Path) -> None:
    rule(Subject.of(load(tmp_path, correct=True)))


def test_its_own_property_holds(novelty: Path) -> None:
    test = novelty / "test_novelty.py"
    test.write_text(block("test_novelty_conforms") + block("test_what_all_keys_share"))
    runpy.run_path(str(test))["test_what_all_keys_share_does_not_matter"]()


def test_its_recipe_can_be_read(novelty: Path) -> None:
    recipe = novelty / "novelty.yaml"
    recipe.write_text(block("use: novelty"))
    assert [scorer.use for scorer in load_recipe(recipe).stages.score] == ["relevance", "novelty"]


def test_every_rule_has_a_row() -> None:
    names = [rule.__name__ for rule in RULES]
    assert [row for row in re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.M) if row in names] == names


def test_every_fixture_is_told() -> None:
    names = [name for name in vars(fixtures) if name.startswith("tetherflow_")]
    assert [name for name in names if f"`{name}`" not in PAGE] == []
    assert len(names) == 4


@pytest.mark.parametrize("stage", ["ForgetsAtOnce", "RemembersQueries"])
def test_what_the_page_shows_of_switches_and_side_stores_conforms(stage: str, tmp_path: Path) -> None:
    module = tmp_path / "shown.py"
    imports = "from collections.abc import Mapping\nimport torch\nfrom torch import Tensor\n"
    module.write_text(f"{imports}from tetherflow import *\n" + block(f"class {stage}"))
    subject = Subject.of(runpy.run_path(str(module))[stage], examples=2)
    for rule in RULES:
        rule(subject)
