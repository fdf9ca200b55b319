"""Writes the package from its templates: whole, or not at all."""

from __future__ import annotations

import os
import shutil
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

import tetherflow
from tetherflow.errors import OutputError
from tetherflow.scaffold.names import PolicyNames
from tetherflow.stages import StageName

FILES: Final = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "src/$module/__init__.py": "policy-$stage.py.txt",
    "src/$module/py.typed": "py.typed",
    "tests/test_$test.py": "test-$stage.py.txt",
    "recipes/$plugin.yaml": "recipe-$stage.yaml",
}
"""Every file of a package, and the template it is made of."""


def write_package(names: PolicyNames, stage: StageName, parent: Path) -> Path:
    """Write a new policy's package into a folder of its name.

    Args:
        names: its names.
        stage: which of the stages its plugin is.
        parent: the folder in which its folder is made.

    Returns:
        Its folder.

    Raises:
        OutputError: There is something of that name already, or it cannot be written. Nothing is left then.
    """
    folder = parent / names.plugin
    if os.path.lexists(folder):
        raise OutputError(f"{folder} exists; choose another name or folder, nothing is overwritten")
    values = {
        "plugin": names.plugin,
        "distribution": names.distribution,
        "module": names.module,
        "class_name": names.cls,
        "test": names.test,
        "stage": stage,
        "version": tetherflow.__version__,
    }
    # Written beside its place and renamed, so that it is there whole or not at all.
    draft = parent / f".{names.plugin}.{os.getpid()}"
    try:
        for name, template in FILES.items():
            path = draft / Template(name).substitute(values)
            path.parent.mkdir(parents=True, exist_ok=True)
            source = files("tetherflow.scaffold") / "templates" / Template(template).substitute(values)
            path.write_text(Template(source.read_text("utf-8")).substitute(values), encoding="utf-8")
        draft.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
