"""The whole-clip autoencoder equals the one with a feature cache, in values and gradients, and compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from tetherflow_backbones.mini.config import TINY
from tetherflow_backbones.wan_vae import decode_latents, encode_frames, feature_cache
from tetherflow_backbones.wan_vae_whole import WholeClip

WAN21: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
"""The layout of Wan2.1: plain residual blocks, no unshuffling."""


def _network(config: dict[str, Any]) -> AutoencoderKLWan:
    torch.manual_seed(0)
    channels = config["z_dim"]
    statistics = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    return AutoencoderKLWan(**{**config, **statistics}).double()


def _gradients(network: AutoencoderKLWan, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frames", [1, 5, 17, 33])
@pytest.mark.parametrize("config", [TINY.vae, WAN21], ids=["residual", "plain"])
def test_it_equals_the_cached_path(config: dict[str, Any], frames: int) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        network = _network(config).to(dtype)
        whole = WholeClip(network)
        torch.manual_seed(1)
        video = torch.rand(2, 3, frames, 16, 16, dtype=dtype) * 2 - 1
        weights = torch.randn(2, 4, 1 + frames // 4, 2, 2, dtype=dtype)
        latents = torch.randn_like(weights).requires_grad_()

        mean, log_variance = encode_frames(network, video, feature_cache(network.encoder), first=True)
        expected = _gradients(network, (mean * weights + log_variance * weights.flip(2)).mean())
        found_mean, found_variance = whole.encode(video)
        assert torch.allclose(found_mean, mean, atol=tolerance)
        assert torch.allclose(found_variance, log_variance, atol=tolerance)
        found = _gradients(network, (found_mean * weights + found_variance * weights.flip(2)).mean())
        _same(found, expected, tolerance)

        output = decode_latents(network, latents, feature_cache(network.decoder), first=True)
        expected = _gradients(network, (output * video).mean())
        expected["latents"], latents.grad = latents.grad, None
        again = whole.decode(latents)
        assert again.shape == video.shape
        assert torch.allclose(again, output, atol=tolerance)
        found = _gradients(network, (again * video).mean())
        found["latents"], latents.grad = latents.grad, None
        _same(found, expected, tolerance)


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    zero = torch.zeros(())
    for name in found.keys() | expected.keys():  # a time convolution has no gradient from a single frame
        assert torch.allclose(found.get(name, zero), expected.get(name, zero), atol=tolerance), name


def test_it_compiles_as_one_graph() -> None:
    network = _network(TINY.vae).float()
    whole = WholeClip(network)
    video, noise = torch.rand(1, 3, 5, 16, 16), torch.randn(1, 4, 2, 2, 2)
    expected = whole.reconstruct(video, noise)[0]
    gradients = _gradients(network, expected.square().mean())
    whole.compile("aot_eager")
    output = whole.reconstruct(video, noise)[0]
    assert torch.allclose(output, expected, atol=1e-5)
    _same(_gradients(network, output.square().mean()), gradients, 1e-5)
