"""The command line, as a person uses it: output, messages and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tetherflow.cli import app, main
from tetherflow.plugins import list_plugins
from tetherflow.recipe import load_recipe

COMMANDS = [command.name for command in app.registered_commands]
TOY = ["--set", "backbone.use=toy", "--set", "rollout.latent_frames=4", "--set", "runtime.threads=1"]
pytestmark = pytest.mark.usefixtures("toy")


def call(*words: str) -> int:
    """Run a command line; returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return int(caught.value.code or 0)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    said = capsys.readouterr().out
    assert {"run", "check", "demo", "plugins", "schema", "replay"} <= set(COMMANDS)
    assert all(f" {command} " in said for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    assert f"Example: tetherflow {command}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["demo", "--help"]])
def test_help_does_not_wait_for_torch(words: list[str]) -> None:
    code = (
        "import sys, tetherflow.cli\n"
        f"try: tetherflow.cli.main({words!r})\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_run_prints_the_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_code = call("run", "quickstart", *TOY, "--output", str(tmp_path / "it's here"))
    printed = capsys.readouterr()
    assert main_code == 0
    (video,) = printed.out.splitlines()
    assert Path(video).is_file()
    assert Path(video).parent.parent.parent == tmp_path / "it's here"
    assert "chunk 2/2" in printed.err
    again = call("run", str(Path(video).parent.parent / "recipe.yaml"))
    assert again == 0
    assert Path(capsys.readouterr().out.strip()).read_bytes() == Path(video).read_bytes()


def test_runs_go_under_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", "quickstart", *TOY) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-quickstart")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "quickstrat"], "did you mean 'quickstart'"),
        (["run", "quickstart", "--set", "rollout.seconds=0"], "0 is out of range; allowed: above 0"),
        (["check", "quickstart", "--set", "stages.edit.0.tau=9"], "stages.edit.0.tau: 9 is out of range"),
        (["check", "quickstart", "--set", "backbone.use=nothing"], "pip install"),
        (["run", "quickstart", *TOY, "--set", "backbone.missing=true"], "toy.safetensors"),
        (["run", "quickstart", *TOY, "--output", "/proc/nothing"], "cannot write into the folder"),
        (["replay", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call(*words) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("words", [["run"], ["run", "a", "b"], ["run", "fifo", "--nope"], ["nope"]])
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    assert "Usage" in "".join(capsys.readouterr())


def test_failure_is_exit_code_1_and_says_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*TOY, "--set", "rollout.latent_frames=24", "--set", "stages.score=[raises]"]
    assert call("run", "tethercache", *changes, "--output", str(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "error: plugin 'raises' (stage 'score', layer 0, chunk 7): raised ValueError" in said
    (folder,) = tmp_path.iterdir()
    assert f"What was generated before is kept in {folder}" in said


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--debug", "check", "nope") == 2
    assert "Traceback" in capsys.readouterr().err


def test_check_prints_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "tethercache", *TOY) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["stages"]["edit"] == [{"use": "tame", "tau": 0.6}]
    (tmp_path / "resolved.yaml").write_text(printed)
    assert load_recipe(tmp_path / "resolved.yaml").rollout.latent_frames == 4


def test_plugins_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plugins", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == len(list_plugins())
    (tame,) = [plugin for plugin in listed if plugin["name"] == "tame"]
    assert (tame["stage"], tame["distribution"], tame["error"]) == ("edit", "tetherflow", None)


def test_plugins_as_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call("plugins") == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["name", "stage", "from", "what", "it", "does"]
    (toy_row,) = [row for row in rows if row.startswith("toy ")]
    assert toy_row.split()[1:4] == ["backbone", "tetherflow-toy", "0.1"]
    (broken_row,) = [row for row in rows if row.startswith("broken ")]
    assert "No module named" in broken_row


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Tetherflow recipe"


def test_replay_passes_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    golden = str(Path(__file__).parent.parent / "golden")
    assert call("replay", golden) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("pass ") and "largest error" in line for line in lines)
    assert call("replay", golden, "--tolerance", "1e-9") == 1
    assert capsys.readouterr().out.startswith("FAIL ")


def test_module_runs_as_a_program() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tetherflow", "run", "--help"], capture_output=True, text=True
    )
    assert finished.returncode == 0
    assert "Example: tetherflow run" in finished.stdout


def test_demo_compares_with_fifo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--set", "backbone.use=toy", "--set", "runtime.threads=1"]
    assert call("demo", "--seconds", "6", *changes, "--output", str(tmp_path)) == 0
    first, second, figures = capsys.readouterr().out.splitlines()
    for line, title, name in ((first, "TetherCache: ", "tethercache"), (second, "FIFO: ", "fifo")):
        video = Path(line.removeprefix(title))
        assert video.is_file()
        assert video.parent.parent.name.endswith(f"-{name}")
    assert re.match(r"drift over 6 s: TetherCache \d+\.\d{3}, FIFO \d+\.\d{3} ", figures)
