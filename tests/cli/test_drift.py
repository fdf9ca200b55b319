"""`tetherflow drift` on the command line."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest

from tetherflow.cli import main
from tetherflow.report.drift_page import read_drift

pytestmark = pytest.mark.usefixtures("toy")
TOY = ["--set", "backbone.use=toy", "--set", "runtime.threads=1"]
SHORT = ["--horizons", "5.25", "--prompts", "3", "--batch-size", "2", "--reference-clips", "4"]
SHORT += ["--time-chunks", "0", *TOY]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["drift", *words])
    return int(caught.value.code or 0)


def test_figures_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "figures"
    assert call("fifo", "tethercache", *SHORT, "--output", str(folder), "--seed", "4") == 0
    printed = capsys.readouterr()
    assert "fifo (1/2): chunk 14/14" in printed.err
    assert "tethercache (2/2): chunk 14/14" in printed.err
    assert printed.out.splitlines()[-2:] == [str(folder / "drift.md"), str(folder / "drift.json")]
    report, provenance = read_drift((folder / "drift.json").read_text())
    assert [policy.name for policy in report.policies] == ["fifo", "tethercache"]
    assert f"{report.policies[1].figures[0].colour_shift.value:.3f}" in printed.out
    assert report.prompts == [f"held out, number {number}" for number in range(3)]
    assert report.seed == 4
    page = (folder / "drift.md").read_text()
    assert page.count("| tethercache |") == 1
    assert f"`{provenance.command}`" in page

    # The command that stands in the report gives the report; nothing is generated twice.
    words = shlex.split(provenance.command)
    assert words[:2] == ["tetherflow", "drift"]
    assert call(*words[2:], "--output", str(folder)) == 0
    assert capsys.readouterr().err == ""
    assert read_drift((folder / "drift.json").read_text())[0] == report


def test_own_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("first\n\n  second, with spaces  \n")
    assert call("fifo", *SHORT, "--prompts-file", str(file), "--output", str(tmp_path)) == 0
    report, provenance = read_drift((tmp_path / "drift.json").read_text())
    assert report.prompts == ["first", "second, with spaces"]
    assert f"--prompts-file {file}" in provenance.command


def test_recipes_are_timed_beside_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SHORT, "--time-chunks", "28", "--output", str(tmp_path)]
    assert call("fifo", "tethercache", *words) == 0
    printed = capsys.readouterr()
    assert "timing tethercache beside fifo: chunk 28/28" in printed.err
    assert "relative to fifo" in printed.out
    report, provenance = read_drift((tmp_path / "drift.json").read_text())
    costs = [policy.cost for policy in report.policies]
    assert [cost and cost.chunks for cost in costs] == [28, 28]
    assert "**Cost**" in (tmp_path / "drift.md").read_text()
    assert "--time-chunks 28" in provenance.command


def test_interruption_keeps_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = ["--set", "backbone.delay=0.2"]
    kept = tmp_path / "statistics"

    def interrupt() -> None:
        while not list(kept.glob("*.safetensors")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    assert call("fifo", *SHORT, *slow, "--output", str(tmp_path)) == 130
    watcher.join()
    assert f"interrupted; what was measured is kept in {tmp_path}" in capsys.readouterr().err
    assert len(list(kept.iterdir())) == 1
    assert not (tmp_path / "drift.md").exists()
    assert call("fifo", *SHORT, *slow, "--output", str(tmp_path)) == 0
    assert "chunk 7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fifoo"], "did you mean 'fifo'"),
        (["fifo", "tethercache", "fifo"], "'fifo' is named 2 times"),
        (["fifo", "--horizons", "thirty"], "'thirty' is no list of seconds"),
        (["fifo", "--horizons", "30,,60"], "is no list of seconds"),
        (["fifo", "--horizons", "4,30"], "is shorter than a window of 5 s"),
        (["fifo", "--horizons", "nan"], "these are given: nan"),
        (["fifo", "--horizons", "30,30"], "these are given: 30, 30"),
        (["fifo", "--prompts", "1"], "--prompts"),
        (["fifo", "--time-chunks", "27"], "27 chunks do not tell the time of a full cache; give 28, or 0"),
        (["tethercache", "--set", "backbone.use=mini", "--prompts", "2000"], "2000 held-out prompts"),
        (["fifo", "--prompts-file", "/nowhere.txt"], "cannot read /nowhere.txt"),
        (["fifo", "--prompts-file", os.devnull], "holds no prompt"),
        (["fifo", "--set", "rollout.seed=3"], "use --seed"),
        (["fifo", "--set", "rollout.first_frames=a.png"], "is the same for all recipes"),
        (["fifo", "--output", "/proc/nothing"], "cannot write into the folder"),
        (["fifo", "--set", "backbone.missing=true"], "toy.safetensors"),
        (["fifo", "--set", "runtime.device=cuda:99"], "CUDA devices"),
    ],
)
def test_bad_input_is_told_before_any_work(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if "--output" in words else ["--output", str(tmp_path)]
    short = SHORT if "--horizons" not in words else SHORT[2:]
    assert call(*short, *words, *output) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in said
    assert not (tmp_path / "statistics").exists()


def test_backbone_without_clips_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["--set", "backbone.reference=false", "--output", str(tmp_path)]
    assert call("fifo", *SHORT, *plain) == 1
    assert "ships no prompts" in capsys.readouterr().err
