"""The video autoencoder from both published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from tests.backbones.published.formats import save_pt, vae, vae_original, vae_original_names
from tetherflow.errors import WeightsError
from tetherflow_backbones.published.vae import load_vae
from tetherflow_backbones.published.vae_names import diffusers_name
from tetherflow_backbones.wan_vae import WanVAE

CPU = torch.device("cpu")


def load(path: Path, dtype: torch.dtype = torch.float32) -> WanVAE:
    return load_vae(path, device=CPU, dtype=dtype)


def test_names_are_those_of_diffusers_converter() -> None:
    """For every name in the published file, against the converter that diffusers ships."""
    names = vae_original_names()
    wanted = {original: new for new, original in convert_wan_vae_to_diffusers({n: n for n in names}).items()}
    assert {name: diffusers_name(name) for name in names} == wanted
    with torch.device("meta"):
        assert set(wanted.values()) == set(AutoencoderKLWan().state_dict())


@pytest.mark.parametrize("layout", ["original", "folder", "file"])
def test_both_layouts_are_the_same_autoencoder(tmp_path: Path, layout: str) -> None:
    network = vae()
    if layout == "original":
        path = save_pt(tmp_path / "Wan2.1_VAE.pth", vae_original(network), prefix="")
    else:
        network.save_pretrained(tmp_path / "vae")
        path = tmp_path / "vae" / ("diffusion_pytorch_model.safetensors" if layout == "file" else "")
    loaded = load(path)
    assert not loaded.network.training
    assert loaded.network.config["base_dim"] == 4
    frames = torch.randint(0, 256, (1, 9, 3, 16, 24), dtype=torch.uint8)
    latents = WanVAE(network).encode(frames)
    assert latents.shape == (1, 3, 16, 2, 3)
    assert torch.equal(loaded.encode(frames), latents)
    assert torch.equal(loaded.decode(latents), WanVAE(network).decode(latents))


def test_what_diffusers_decodes_at_once_is_what_streams(tmp_path: Path) -> None:
    """diffusers' own whole-clip decoding is the oracle."""
    network = vae()
    loaded = load(save_pt(tmp_path / "Wan2.1_VAE.pth", vae_original(network), prefix=""))
    latents = torch.randn(1, 7, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    decoder = loaded.decoder()
    streamed = torch.cat([decoder.intensities(part) for part in latents.split((1, 3, 3), dim=1)], dim=1)
    wanted = network.decode(loaded.restore(latents)).sample.transpose(1, 2)
    torch.testing.assert_close(streamed, wanted.clamp(-1, 1), atol=1e-5, rtol=0)


def test_bfloat16(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "Wan2.1_VAE.pth", vae_original(vae()), prefix="")
    latents = torch.randn(1, 2, 16, 2, 2)
    narrow, wide = (
        load(path, dtype).decoder().intensities(latents) for dtype in (torch.bfloat16, torch.float32)
    )
    assert narrow.dtype == torch.float32
    assert (narrow - wide).abs().mean() < 0.05


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights are missing"):
        load(tmp_path / "Wan2.1_VAE.pth")
    path = save_pt(tmp_path / "x.pth", {"token_embedding.weight": torch.ones(2, 2)}, prefix="")
    with pytest.raises(WeightsError, match=r"another architecture.*wanted is Wan2.1's video autoencoder"):
        load(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = vae_original(vae())
    del state["decoder.upsamples.3.time_conv.bias"]
    with pytest.raises(
        WeightsError,
        match=r"is incomplete: 1 parameter is missing: decoder.up_blocks.0.upsamplers.0.time_conv",
    ):
        load(save_pt(tmp_path / "Wan2.1_VAE.pth", state, prefix=""))


def test_channels_without_published_statistics(tmp_path: Path) -> None:
    four = {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    AutoencoderKLWan(base_dim=4, **four).save_pretrained(tmp_path)
    assert load(tmp_path).latent_dim == 4
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"has 4 latent channels; without a config.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", json.dumps({"base_dim": "wide"}), json.dumps({"colour": "red"})]
)
def test_configuration_that_is_not_understood(tmp_path: Path, content: str) -> None:
    vae().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"cannot be read|configuration is not understood"):
        load(tmp_path)
