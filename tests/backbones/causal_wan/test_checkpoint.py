"""Loading checkpoints: strictly by name, with an error that says what is wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.backbones.causal_wan.models import SMALL, save, transformer
from tetherflow.errors import WeightsError
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer
from tetherflow_backbones.causal_wan.checkpoint import digest, load_transformer


def load(path: Path, arch: Architecture = SMALL, dtype: torch.dtype = torch.float32) -> CausalWanTransformer:
    return load_transformer(path, arch, device=torch.device("cpu"), dtype=dtype)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_weights_come_back(tmp_path: Path, prefix: str) -> None:
    model = transformer()
    loaded = load(save(model, tmp_path / "w.safetensors", prefix))
    assert not loaded.training
    for name, parameter in loaded.named_parameters():
        assert not parameter.requires_grad
        assert torch.equal(parameter, model.state_dict()[name])


def test_weights_are_converted(tmp_path: Path) -> None:
    loaded = load(save(transformer(), tmp_path / "w.safetensors"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights are missing: .*nowhere.safetensors is not a file"):
        load(tmp_path / "nowhere.safetensors")
    with pytest.raises(WeightsError, match="is not a file"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    path = save(transformer(), tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        WeightsError, match=r"w.safetensors cannot be read as safetensors .* may be truncated"
    ):
        load(path)


@pytest.mark.parametrize("content", [b"not safetensors", b"\x80\x04\x95 pickled"])
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content * 20)
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load(path)


def test_pickled_checkpoint_is_never_executed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dim": 48}, "have another shape: .*, not "),
        ({"ffn_dim": 16}, r"6 have another shape: blocks.0.ffn.0.weight is \[32, 24\], not \[16, 24\]"),
        ({"num_layers": 3}, r"parameters are missing: blocks.2.cross_attn.k.bias, .*, …"),
        ({"num_layers": 1}, r"are unexpected: blocks.1.cross_attn.k.bias"),
        ({"in_dim": 4}, r"patch_embedding.weight is \[24, 3, 1, 2, 2\], not \[24, 4, 1, 2, 2\]"),
    ],
)
def test_another_architecture(tmp_path: Path, change: dict[str, int], text: str) -> None:
    path = save(transformer(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="holds the weights of another architecture") as caught:
        load(path, attrs.evolve(SMALL, **change))
    assert caught.match(text)


def test_stray_parameter(tmp_path: Path) -> None:
    path = save(transformer(), tmp_path / "w.safetensors")
    save_file({**load_file(path), "model.extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="1 are unexpected: extra"):
        load(path)


def test_digest_is_over_all_files_in_order(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"a")
    two.write_bytes(b"b")
    assert len(digest([one])) == 64
    assert digest([one, two]) != digest([two, one]) != digest([one])
    wanted = hashlib.sha256(hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest()).hexdigest()
    assert digest([one, two]) == wanted
