"""What the README and the documentation show must work as shown."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tetherflow import Candidates, Scorer
from tetherflow.hookspecs import StageHooks
from tetherflow.recipe import bundled_recipes, load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    text = SNIPPET.sub(lambda found: (ROOT / "recipes" / found[1]).read_text(), page.read_text())
    return [block for kind, block in BLOCK.findall(text) if kind == language]


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


def documentation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build hook of the policies' pages, as mkdocs imports it."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("policy_pages")


def test_every_policy_has_a_page_that_shows_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = documentation(monkeypatch)
    pictures = {name for page in PAGES for name in hook.PICTURE.findall(page.read_text())}
    assert pictures == set(sys.modules["policy_pictures"].PICTURES)
    for name in hook.policies():
        page = hook.page_of(name)
        assert page is not None, f"no page of docs/policies shows recipes/{name}.yaml"
        assert hook.PICTURE.findall(page.read_text()), f"{page.name} shows no picture"
        assert f"policies/{page.name}\n" in (ROOT / "mkdocs.yml").read_text()
        assert f"]({page.name})" in (page.parent / "index.md").read_text()


def test_pictures_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    documentation(monkeypatch)
    folder = sys.modules["policy_pictures"].FOLDER
    sizes = {file.stem: file.stat().st_size for file in folder.iterdir()}
    assert sizes.keys() == sys.modules["policy_pictures"].PICTURES.keys()
    assert max(sizes.values()) < 60_000


def test_what_is_generated_of_the_policies_pages_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = documentation(monkeypatch)
    table = hook.on_page_markdown((hook.PAGES / "index.md").read_text())
    rows = {
        name: line for line in table.splitlines() if line.startswith("| [`") for name in [line.split("`")[1]]
    }
    assert rows.keys() == set(hook.policies())
    cells = [cell.strip() for cell in rows["tethercache"].split("|")]
    assert "sink 3, memory 14, recent 4" in cells
    assert "`evict`, `score`, `select`, `edit`" in cells
    assert "in its context pass" in cells
    page = hook.on_page_markdown((hook.PAGES / "tethercache.md").read_text())
    assert "| `tau` | number ≥ 0, ≤ 1 or schedule | `0.6` |" in page
    assert "`tetherflow picture tethercache --chunks 60`: backbone `mini`, layer 3 of 0 to 6, seed 0" in page
    for path in hook.PAGES.glob("*.md"):
        assert "<!-- generated" not in hook.on_page_markdown(path.read_text()), path.name


def test_pictures_are_drawn_by_commands_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    documentation(monkeypatch)
    pictures = sys.modules["policy_pictures"]
    for recipe, words in pictures.PICTURES.items():
        load_recipe(recipe, [value for key, value in pairwise(words) if key == "--set"])
        assert pictures.command_of(recipe).startswith(f"tetherflow picture {recipe} --chunks ")
