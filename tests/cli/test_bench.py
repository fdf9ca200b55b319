"""`tetherflow bench` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tetherflow.cli import main

pytestmark = pytest.mark.usefixtures("toy")
TOY = ["--set", "backbone.use=toy", "--set", "runtime.threads=1"]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *words])
    return int(caught.value.code or 0)


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "bench.json"
    assert call("fifo", "tethercache", "--chunks", "30", "--json", str(file), *TOY) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    headings = ("policy", "chunk", "ratio to fifo", "chunk 10", "chunk 30", "frames/s", "cache")
    assert all(heading in lines[1] for heading in headings)
    (row,) = [line for line in lines if "tethercache" in line]
    data = json.loads(file.read_text())
    fifo, tethercache = data["timings"]
    ratio, low, high = (tethercache[key] for key in ("ratio", "ratio_low", "ratio_high"))
    assert f"{ratio:.3f} [{low:.3f}, {high:.3f}]" in row
    assert (fifo["name"], fifo["ratio"]) == ("fifo", 1)
    command = "tetherflow bench fifo tethercache --chunks 30 --set backbone.use=toy --set runtime.threads=1"
    assert data["provenance"]["command"] == command
    assert data["threads"] == 1
    assert lines[-1] == str(file)
    assert "cpu, float32, 1 threads" in lines[-2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chunks", "10"], "30"),
        (["fifoo"], "did you mean 'fifo'"),
        (["fifo", *TOY, "--set", "backbone.missing=true"], "toy.safetensors"),
        (["fifo", *TOY, "--json", "/proc/nothing/bench.json"], "cannot write into the output folder"),
    ],
)
def test_bad_input_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    assert message in capsys.readouterr().err
