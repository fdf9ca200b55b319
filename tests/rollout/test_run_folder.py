"""Run folders: named safely, never overwritten, written whole."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from tetherflow.errors import OutputError
from tetherflow.recipe import load_recipe
from tetherflow.rollout.run_folder import RunFolder, Stop, VideoRecord

pytestmark = pytest.mark.usefixtures("toy")
NOW = datetime(2026, 1, 2, 3, 4, 5)


def folder_of(tmp_path: Path, name: str) -> RunFolder:
    recipe = load_recipe("fifo", ["backbone.use=toy", f"output.folder='{tmp_path}'"])
    named = recipe.output.model_copy(update={"name": name})
    return RunFolder.create(recipe.model_copy(update={"output": named}), NOW)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tethercache", "20260102-030405-tethercache"),
        ("../../up", "20260102-030405-up"),
        ("a/b\nc", "20260102-030405-a-b-c"),
        ("...", "20260102-030405-run"),
        ("x" * 500, "20260102-030405-" + "x" * 60),
    ],
)
def test_name_is_safe(tmp_path: Path, name: str, expected: str) -> None:
    assert folder_of(tmp_path, name).path == tmp_path / expected


def test_same_second_gets_another_folder(tmp_path: Path) -> None:
    names = [folder_of(tmp_path, "fifo").path.name for _ in range(3)]
    assert names == [f"20260102-030405-fifo{end}" for end in ("", "-2", "-3")]


def test_unwritable_parent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write into the folder"):
        folder_of(tmp_path / "file", "fifo")


def test_records_are_gathered_into_results(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "fifo")
    records = [
        VideoRecord(index, None, "é\n", [], 0, 1, "complete", 3, 9, 1.0, [0.5], 5, 10) for index in (10, 2, 0)
    ]
    for record in records:
        folder.add_record(record)
    folder.add_stop(1, Stop("StageError", ["p", "score", 0, 1, "why"]))
    assert [record.index for record in folder.records()] == [0, 2, 10]
    assert folder.stops() == [Stop("StageError", ["p", "score", 0, 1, "why"])]
    folder.finish({"videos": [record.prompt for record in folder.records()]})
    assert json.loads((folder.path / "results.json").read_text()) == {"videos": ["é\n"] * 3}
    assert sorted(path.name for path in folder.path.iterdir()) == ["recipe.yaml", "results.json", "videos"]


def test_folder_without_videos_can_be_removed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "fifo")
    (folder.path / "videos" / "0000.mp4").write_bytes(b"")
    assert not folder.remove_if_empty()
    (folder.path / "videos" / "0000.mp4").unlink()
    assert folder.remove_if_empty()
    assert not folder.path.exists()
