"""Ctrl-C: what was generated so far stays playable, and the program says where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from tetherflow.rollout.interrupt import Interruption, restored_signals

pytestmark = pytest.mark.usefixtures("toy")


def interrupt(output: Path, number: int, *changes: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Start a slow run, send it a signal once every process has written, and wait for it."""
    processes = 2 if "runtime.devices=2" in changes else 1
    command = [sys.executable, "-m", "tetherflow", "run", "tethercache", "--output", str(output)]
    for change in ("backbone.use=toy", "backbone.delay=0.2", "runtime.threads=1", *changes):
        command += ["--set", change]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        while len(list(output.glob("*/videos/*.part"))) < processes:
            assert process.poll() is None, process.stderr
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
    (folder,) = output.iterdir()
    return subprocess.CompletedProcess(command, process.returncode, out, err), folder


def check(finished: subprocess.CompletedProcess[str], folder: Path, videos: int) -> None:
    assert "Traceback" not in finished.stderr
    assert "interrupted; what was generated plays:" in finished.stderr
    assert str(folder) in finished.stderr.replace("\n", "")
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "interrupted"
    assert len(results["videos"]) == videos
    for video in results["videos"]:
        assert video["status"] == "interrupted"
        assert str(folder / video["file"]) in finished.stdout
        with av.open(str(folder / video["file"])) as container:
            assert sum(1 for _ in container.decode(video=0)) == video["frames"] > 0
    assert not list(folder.glob("**/*.part"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_process(tmp_path: Path, number: int, code: int) -> None:
    finished, folder = interrupt(tmp_path / "runs", number)
    assert finished.returncode == code
    check(finished, folder, videos=1)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    finished, folder = interrupt(tmp_path / "runs", signal.SIGINT, "runtime.devices=2", "rollout.samples=4")
    assert finished.returncode == 130
    check(finished, folder, videos=2)


def test_signal_is_put_off_where_it_would_spoil_something() -> None:
    interruption = Interruption()
    with restored_signals():
        interruption.arm()
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)  # ignored: the first is being obeyed
        with pytest.raises(KeyboardInterrupt), interruption.allowed():
            raise AssertionError("the block must not begin")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_raises_where_it_may() -> None:
    interruption = Interruption()
    with restored_signals():
        interruption.arm()
        with pytest.raises(KeyboardInterrupt), interruption.allowed():
            os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.signal == signal.SIGTERM
