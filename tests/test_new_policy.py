"""`tetherflow new-policy`: what it writes can be installed, tested and run at once, by a stranger."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.environments import environment, install
from tetherflow.cli import main
from tetherflow.testing import RULES

STAGES = ["score", "select", "edit", "evict"]


@pytest.mark.slow
def test_new_policies_are_installed_tested_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for stage in STAGES:
        # The default stage is not named.
        options = [] if stage == "score" else ["--stage", stage]
        with pytest.raises(SystemExit) as caught:
            main(["new-policy", f"my {stage}", *options])
        assert not caught.value.code
        said = capsys.readouterr()
        folders.append(tmp_path / said.out.strip())
        assert f"pip install -e '.[test]' && pytest && tetherflow run recipes/my-{stage}.yaml" in said.err

    python = environment(tmp_path / "environment")
    install(python, *folders)

    def call(*words: str | Path) -> str:
        finished = subprocess.run([python, "-m", *words], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    listed = {plugin["name"]: plugin for plugin in json.loads(call("tetherflow", "plugins", "--json"))}
    for stage in STAGES:
        plugin = listed[f"my-{stage}"]
        assert (plugin["stage"], plugin["distribution"]) == (stage, f"tetherflow-my-{stage}")

    # In each two suites, of the plugin and of its recipe, and a test of its own.
    assert f"{len(STAGES) * (2 * len(RULES) + 1)} passed" in call("pytest", "-q", *folders)

    recipe = folders[0] / "recipes" / "my-score.yaml"
    video = Path(call("tetherflow", "run", recipe, "--set", "runtime.threads=1").strip())
    assert video.stat().st_size > 0
    lock = json.loads((video.parent.parent / "lock.json").read_text())
    assert lock["plugins"]["my-score"]["distribution"] == "tetherflow-my-score"


def test_refusal_is_one_message_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["new-policy", "tame", "--folder", str(tmp_path)])
    assert caught.value.code == 2
    assert "error: a plugin named 'tame' is installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
