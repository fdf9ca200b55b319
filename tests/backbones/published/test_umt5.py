"""The text encoder from every published layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.backbones.published import wan_t5
from tests.backbones.published.formats import save_pt, umt5, umt5_original
from tetherflow.errors import WeightsError
from tetherflow_backbones.published.umt5 import load_umt5

CPU = torch.device("cpu")
IDS = torch.tensor([5, 9, 4, 17, 30, 2, 1, 0, 0])
MASK = (IDS != 0).long()


def hidden(path: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    network = load_umt5(path, device=CPU, dtype=dtype)
    assert not network.training
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in network.parameters())
    return network(IDS[None], attention_mask=MASK[None]).last_hidden_state[0]


def test_wans_file_means_what_wan_computes(tmp_path: Path) -> None:
    """Against a plain encoder under Wan's own names, so that no two tensors can be swapped unnoticed."""
    state = umt5_original(umt5())
    found = hidden(save_pt(tmp_path / "t5.pth", state, prefix=""))
    wanted = wan_t5.encode(state, IDS, MASK)
    torch.testing.assert_close(found[MASK.bool()], wanted[MASK.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shard", ["10GB", "4KB"])
def test_transformers_folder_sharded_or_not(tmp_path: Path, shard: str) -> None:
    model = umt5()
    model.save_pretrained(tmp_path / "text_encoder", max_shard_size=shard)
    wanted = model(IDS[None], attention_mask=MASK[None]).last_hidden_state[0]
    assert torch.equal(hidden(tmp_path / "text_encoder"), wanted)


def test_bfloat16_stays_near(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "t5.pth", umt5_original(umt5()), prefix="")
    wide, narrow = hidden(path), hidden(path, torch.bfloat16)
    assert (narrow.float() - wide).abs().mean() < 0.05 * wide.abs().mean()


def test_sizes_are_read_from_the_file(tmp_path: Path) -> None:
    network = load_umt5(
        save_pt(tmp_path / "t5.pth", umt5_original(umt5(width=20)), prefix=""),
        device=CPU,
        dtype=torch.float32,
    )
    assert (network.config.d_model, network.config.d_kv, network.config.num_layers) == (20, 4, 2)


def test_another_model(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "x.pth", {"encoder.downsamples.0.residual.0.gamma": torch.ones(3)}, prefix="")
    with pytest.raises(
        WeightsError, match=r"is no UMT5 text encoder \('shared.weight' is not there\); it looks"
    ):
        load_umt5(path, device=CPU, dtype=torch.float32)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = umt5_original(umt5())
    del state["blocks.1.ffn.fc2.weight"]
    with pytest.raises(
        WeightsError,
        match=r"is incomplete: 1 parameter is missing: encoder.block.1.layer.1.DenseReluDense.wo",
    ):
        hidden(save_pt(tmp_path / "t5.pth", state, prefix=""))
