"""The miniature's files: written and read back, and refused with a clear error when they are not right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tetherflow.errors import WeightsError
from tetherflow_backbones.mini import Mini
from tetherflow_backbones.mini.weights import FILES, load


@pytest.fixture
def folder(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "weights"))


def _mini(folder: Path) -> Mini:
    return Mini(Mini.Options(weights=folder), device=torch.device("cpu"))


def test_published_parameter_names(folder: Path) -> None:
    names = load_file(folder / "transformer.safetensors").keys()
    assert "model.blocks.0.self_attn.q.weight" in names
    assert all(name.startswith("model.") for name in names)


def test_the_card_names_every_file_and_its_hash(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    hashes = json.loads((folder / "config.json").read_text())["sha256"]
    for name in FILES:
        assert name in card
        assert hashes[name] in card


@pytest.mark.parametrize("name", [*FILES, "config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name):
        _mini(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_a_truncated_file_is_refused(folder: Path, name: str, kept: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(WeightsError, match=name):
        _mini(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_unknown_tensor_is_refused(folder: Path, name: str) -> None:
    tensors = load_file(folder / name)
    first = sorted(tensors)[0]
    save_file({key: t for key, t in tensors.items() if key != first}, folder / name)
    with pytest.raises(WeightsError, match="another architecture"):
        _mini(folder)
    save_file({**tensors, "stranger": torch.zeros(1)}, folder / name)
    with pytest.raises(WeightsError, match="stranger"):
        _mini(folder)


def test_other_shapes_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["transformer"]["ffn_dim"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="another architecture"):
        _mini(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"transformer": {"depth": 3}}', '{"transformer": {"dim": 7}}']
)
def test_a_bad_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load(folder)
