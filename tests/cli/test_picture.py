"""`tetherflow picture`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_commands import call

TOY = ["--set", "backbone.use=toy", "--set", "runtime.threads=1", "--chunks", "4"]
pytestmark = pytest.mark.usefixtures("toy")


def test_it_writes_a_picture_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "cache.png"
    assert call("picture", "tethercache", *TOY, "--layer", "1", "--output", str(file)) == 0
    assert capsys.readouterr().out.strip() == str(file)
    with Image.open(file) as image:
        assert image.format == "PNG"
    assert [path.name for path in file.parent.iterdir()] == ["cache.png"]


def test_it_is_named_after_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("picture", "fifo", *TOY) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "7"], "there is no layer 7; backbone 'toy' has layers 0 to 1"),
        (["--output", "cache.jpg"], "cannot write cache.jpg: the name of a picture must end in .png"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("picture", "fifo", *TOY, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_nothing_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call("picture", "fifo", *TOY) == 2
    assert "pip install 'tetherflow[plot]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
