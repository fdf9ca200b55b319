"""Loads Wan2.1's video autoencoder, under diffusers' names or as `Wan2.1_VAE.pth` has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan

from tetherflow.errors import WeightsError
from tetherflow_backbones.loading import assign, check_parameters
from tetherflow_backbones.published.vae_names import diffusers_name, is_original
from tetherflow_backbones.tensor_files import Stored, files_of, open_tensors
from tetherflow_backbones.wan_vae import WanVAE

LATENT_CHANNELS: Final = 16
"""Channels whose means and deviations Wan2.1 publishes; they are `AutoencoderKLWan`'s defaults."""


def load_vae(path: Path, *, device: torch.device, dtype: torch.dtype) -> WanVAE:
    """A video autoencoder, in inference mode.

    Args:
        path: `Wan2.1_VAE.pth`, or diffusers' `vae` folder, or a file of either kind.
        device: where it goes.
        dtype: its type.

    Raises:
        WeightsError: A file is missing, truncated or of another model.
    """
    stored = open_tensors(path)
    if any(is_original(name) for name in stored):
        stored = {diffusers_name(name): tensor for name, tensor in stored.items()}
        config = _sizes(path, stored)
    else:
        config = _config(files_of(path)[0].parent / "config.json") or _sizes(path, stored)
    try:
        with torch.device("meta"):
            network = AutoencoderKLWan(**config)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the autoencoder's configuration is not understood: {error}") from error
    check_parameters(path, network, stored, "Wan2.1's video autoencoder")
    assign(network, stored, device, dtype)
    return WanVAE(network.eval().requires_grad_(False))


def _config(path: Path) -> dict[str, Any]:
    """Arguments of `AutoencoderKLWan` from diffusers' `config.json`; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if not key.startswith("_")}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def _sizes(path: Path, stored: Mapping[str, Stored]) -> dict[str, Any]:
    """Arguments of `AutoencoderKLWan` as the tensors' shapes tell them."""
    try:
        width, channels = stored["encoder.conv_in.weight"].shape[0], stored["post_quant_conv.weight"].shape[0]
    except KeyError:
        check_parameters(path, AutoencoderKLWan(base_dim=4), stored, "Wan2.1's video autoencoder")
        raise
    if channels != LATENT_CHANNELS:
        raise WeightsError(
            f"{path} has {channels} latent channels; without a config.json beside it, whose latents_mean and "
            f"latents_std are needed, only {LATENT_CHANNELS} are known"
        )
    return {"base_dim": width, "z_dim": channels}
