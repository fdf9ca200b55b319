"""Puts the third-party package of `tests/toy` on the path, as if it were installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the package for one test, for processes that it starts too."""
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), os.environ.get("PYTHONPATH", "")]))
    return TOY


def register(folder: Path, distribution: str, entries: str, version: str = "1.0") -> None:
    """Make a folder on the path look as if a distribution were installed in it.

    Args:
        folder: the folder.
        distribution: name of the distribution.
        entries: its `entry_points.txt`.
        version: its version.
    """
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entries)
