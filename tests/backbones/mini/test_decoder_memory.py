"""A decoder that begins late gives the frames of one that began early, once it has forgotten that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.backbones.mini.test_wan_vae_whole import WAN21
from tetherflow_backbones.mini import Mini
from tetherflow_backbones.mini.config import TINY
from tetherflow_backbones.wan_vae import WanVAE, decoder_memory


@pytest.mark.parametrize("config", [TINY.vae, WAN21], ids=["residual", "plain"])
def test_a_late_decoder_comes_to_agree(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    channels = config["z_dim"]
    vae = WanVAE.from_config({**config, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels})
    memory = decoder_memory(vae.network.decoder)
    latents = torch.randn(1, memory + 6, channels, 2, 2)
    early, late = vae.decoder().intensities(latents), vae.decoder().intensities(latents[:, 3:])
    # Latent frame 3 + memory is the first that the late decoder shows as the early one does.
    agreed = 4 * (3 + memory) - 3
    torch.testing.assert_close(late[:, agreed - 12 :], early[:, agreed:], atol=1e-6, rtol=0)


def test_the_miniature_forgets_within_seconds() -> None:
    mini = Mini(Mini.Options(), device=torch.device("cpu"))
    memory = mini.decoder_memory
    latents = torch.randn(1, 3 + memory + 3, *mini.latent_shape, generator=torch.Generator().manual_seed(0))
    early, late = mini.decoder(), mini.decoder()
    whole = torch.cat([early.intensities(part) for part in latents.split(3, dim=1)], dim=1)
    part = torch.cat([late.intensities(part) for part in latents[:, 3:].split(3, dim=1)], dim=1)
    agreed = 4 * (3 + memory) - 3
    torch.testing.assert_close(part[:, agreed - 12 :], whole[:, agreed:], atol=1e-6, rtol=0)
