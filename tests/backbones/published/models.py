"""A whole small model of the published kind, as files in the published formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from tests.backbones.causal_wan.models import save, transformer
from tests.backbones.published.formats import (
    save_pt,
    save_tokenizer,
    umt5,
    umt5_original,
    vae,
    vae_original,
)
from tetherflow_backbones.causal_wan import Architecture
from tetherflow_backbones.published.backbone import TEXT_ENCODER, TOKENIZER, VAE

ARCH = Architecture(
    dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=8, text_dim=12, text_len=8, in_dim=16, out_dim=16
)
LATENT = (4, 4)
SETTINGS: dict[str, Any] = {"architecture": attrs.asdict(ARCH), "latent_size": LATENT}
"""Options that a small model needs besides its files."""


def save_parts(folder: Path) -> Path:
    """Text encoder, tokenizer and autoencoder, laid out as `tetherflow fetch` leaves Wan2.1's."""
    save_pt(folder / TEXT_ENCODER, umt5_original(umt5()), prefix="")
    save_tokenizer(folder / TOKENIZER)
    save_pt(folder / VAE, vae_original(vae()), prefix="")
    return folder


def save_model(folder: Path, transformer_file: str, key: str = "generator_ema") -> Path:
    """A whole model, laid out as `tetherflow fetch` leaves it."""
    path = save_parts(folder) / transformer_file
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True)
        save(transformer(ARCH), path)
    else:
        save_pt(path, transformer(ARCH).state_dict(), key)
    return folder
