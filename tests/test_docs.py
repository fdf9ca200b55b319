"""What the README and the documentation show must work as shown."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from tetherflow import Candidates, Scorer
from tetherflow.hookspecs import StageHooks
from tetherflow.recipe import bundled_recipes, load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", ["README.md", "docs/writing-a-policy.md"])
def test_the_ten_line_plugin_scores(page: str, tmp_path: Path) -> None:
    module = tmp_path / "my_package.py"
    module.write_text(next(text for text in blocks(ROOT / page, "python") if "class SmallKeys" in text))
    space: dict[str, type[Scorer]] = runpy.run_path(str(module))
    scorer = space["SmallKeys"](space["SmallKeys"].Options(weight=2.0))  # type: ignore[call-arg]
    keys = torch.randn(2, 5, 3, 4)
    candidates = Candidates(
        layer=0,
        chunk=0,
        capacity=3,
        residents=3,
        origins=torch.arange(5).expand(2, -1),
        mean_keys=keys,
        mean_query=keys[:, 0],
        read_keys=lambda: keys[:, :, None],
        read_values=lambda: keys[:, :, None],
    )
    score = scorer.score(candidates)  # type: ignore[attr-defined]
    torch.testing.assert_close(score, -2 * keys.norm(dim=-1).mean(dim=-1))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_shown_can_be_read(page: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle and a blue square\n")
    for number, text in enumerate(blocks(page, "yaml")):
        if "small-keys" in text or "novelty" in text:
            continue  # needs the plugin of the same page; those are tested elsewhere
        path = tmp_path / f"recipe{number}.yaml"
        path.write_text(text)
        load_recipe(path)


def test_every_hook_has_a_row_with_its_arguments() -> None:
    text = (ROOT / "docs" / "writing-a-policy.md").read_text()
    for name in (name for name in vars(StageHooks) if not name.startswith("_")):
        code = getattr(StageHooks, name).__code__
        arguments = ", ".join(code.co_varnames[1 : code.co_argcount])
        assert f"`{name}({arguments})" in text


def test_every_shipped_recipe_is_listed() -> None:
    text = (ROOT / "docs" / "getting-started.md").read_text()
    assert [name for name in bundled_recipes() if f"| `{name}` |" not in text] == []


def test_every_file_that_is_linked_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
