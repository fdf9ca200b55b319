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


def test_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "bench.json"
    assert call("fifo", "tethercache", "--chunks", "28", "--json", str(file), *TOY) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    headings = ("policy", "chunk", "ratio to fifo", "chunk 8", "chunk 28", "frames/s", "cache", "attention")
    assert all(heading in lines[2] for heading in headings)
    row, *others = [line for line in lines if "tethercache" in line]
    data = json.loads(file.read_text())
    fifo, tethercache = data["timings"]
    ratio, low, high = (tethercache[key] for key in ("ratio", "ratio_low", "ratio_high"))
    assert f"{ratio:.3f} [{low:.3f}, {high:.3f}]" in row
    assert (fifo["name"], fifo["ratio"]) == ("fifo", 1)
    command = "tetherflow bench fifo tethercache --chunks 28 --set backbone.use=toy --set runtime.threads=1"
    assert data["provenance"]["command"] == command
    assert data["threads"] == 1
    assert lines[-1] == str(file)
    assert "cpu, float32, 1 threads" in lines[-2]

    assert [each["name"] for each in data["details"]] == ["fifo", "tethercache"]
    parts = data["details"][1]["parts"]
    assert {"attention", "products", "glue", "policy", "cache", "rotation"} <= set(parts)
    assert f"{1000 * parts['policy']:.3g} ms" in others[0]
    for title in (
        "Parts of a steady chunk",
        "Attention and products alone",
        "From the prompt to an MP4 file",
    ):
        assert title in printed.out
    assert data["details"][0]["whole"]["frames_per_second"] > 0
    assert {floor["what"] for floor in data["details"][0]["roofline"]["floors"]} >= {"attention", "product"}


def test_chunks_only_and_another_implementation(capsys: pytest.CaptureFixture[str]) -> None:
    rival = "tests.bench.rival:instant"
    assert call("fifo", "--chunks", "28", "--chunks-only", "--against", rival, *TOY) == 0
    printed = capsys.readouterr().out
    assert rival in printed
    assert "Parts of a steady chunk" not in printed


def test_random_weights_take_the_place_of_the_backbone(tmp_path: Path) -> None:
    sizes = {"dim": 48, "ffn_dim": 64, "heads": 2, "layers": 1, "text_len": 8, "latent_size": "[4, 4]"}
    words = [word for key, value in sizes.items() for word in ("--set", f"backbone.{key}={value}")]
    common = ["--chunks", "28", "--chunks-only", "--json", str(tmp_path / "bench.json")]
    assert call("fifo", "--random-weights", *common, *words) == 0
    data = json.loads((tmp_path / "bench.json").read_text())
    assert "--random-weights --chunks-only" in data["provenance"]["command"]
    assert data["details"] == []
    # 21 frames of 4 tokens, 48 wide, keys and values in float32, and where each frame came from.
    assert data["timings"][0]["cache_bytes"] == 21 * (4 * 48 * 2 * 4 + 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chunks", "10"], "28"),
        (["fifo", *TOY, "--against", "nowhere"], "MODULE:FUNCTION"),
        (["fifoo"], "did you mean 'fifo'"),
        (["fifo", *TOY, "--set", "backbone.missing=true"], "toy.safetensors"),
        (["fifo", *TOY, "--json", "/proc/nothing/bench.json"], "cannot write into the folder"),
    ],
)
def test_bad_input_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    assert message in capsys.readouterr().err
