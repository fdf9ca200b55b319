"""`tetherflow fetch`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_commands import call
from tetherflow_backbones.published.pins import pins


def test_a_backbone_with_its_own_weights_needs_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fetch", "mini") == 0
    assert "brings its weights along" in capsys.readouterr().err


def test_unknown_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fetch", "self-focring") == 2
    assert "did you mean 'self-forcing'" in capsys.readouterr().err


def test_offline_it_lists_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fetch", "reward-forcing", "--folder", str(tmp_path), "--offline") == 2
    said = capsys.readouterr().err
    assert f"under {tmp_path}" in said
    assert "Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth (0.51 GB, revision 37ec512624d6)" in said
    assert said.splitlines()[-1] == "  JaydenLu666/Reward-Forcing-T2V-1.3B/rewardforcing.pt"


def test_wrong_files_in_the_folder_are_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in pins().values():
        file.place(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        file.place(tmp_path).write_bytes(b"no weights")
    assert call("fetch", "self-forcing", "--folder", str(tmp_path), "--offline") == 2
    said = capsys.readouterr().err
    assert f"self-forcing: 4 files in {tmp_path}" in said
    assert "has 10 bytes, not 11361920418: it is truncated or another file" in said
