"""A new policy's package: written whole or not at all, and never over anything."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from tetherflow.errors import OutputError
from tetherflow.scaffold import PolicyNames, write_package
from tetherflow.stages import StageName

NAMES = PolicyNames("night-owl")


@pytest.mark.parametrize("stage", get_args(StageName))
def test_package_is_complete(stage: StageName, tmp_path: Path) -> None:
    folder = write_package(NAMES, stage, tmp_path)
    assert folder == tmp_path / "night-owl"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "recipes/night-owl.yaml",
        "src/tetherflow_night_owl/__init__.py",
        "src/tetherflow_night_owl/py.typed",
        "tests/test_night_owl.py",
    ]
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "tetherflow-night-owl"
    assert project["entry-points"]["tetherflow.policies"] == {"night-owl": "tetherflow_night_owl:NightOwl"}
    assert "night-owl" in str(yaml.safe_load((folder / "recipes" / "night-owl.yaml").read_text())["stages"])
    module = ast.parse((folder / "src" / "tetherflow_night_owl" / "__init__.py").read_text())
    (cls,) = [node for node in module.body if isinstance(node, ast.ClassDef)]
    assert cls.name == "NightOwl"
    assert stage in [node.name for node in cls.body if isinstance(node, ast.FunctionDef)]
    assert not [path for path in folder.rglob("*") if path.is_file() and "$" in path.read_text()]
    assert [path.name for path in tmp_path.iterdir()] == ["night-owl"]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_overwritten(kind: str, tmp_path: Path) -> None:
    there = tmp_path / "night-owl"
    if kind == "file":
        there.write_text("mine")
    elif kind == "folder":
        there.mkdir()
    else:
        there.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="night-owl exists; choose another name or folder"):
        write_package(NAMES, "score", tmp_path)
    assert list(tmp_path.iterdir()) == [there]
    assert kind != "file" or there.read_text() == "mine"


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        if path.name.startswith("test_"):
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=r"cannot write .*night-owl: No space left on device"):
        write_package(NAMES, "score", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_package(NAMES, "score", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*: Not a directory"):
        write_package(NAMES, "score", tmp_path / "file")
