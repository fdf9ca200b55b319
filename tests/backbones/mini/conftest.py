"""A tiny, untrained miniature in a folder, for tests that need files and not quality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from tetherflow_backbones.mini.config import TINY
from tetherflow_backbones.mini.train.denoiser import Denoiser
from tetherflow_backbones.mini.train.export import export
from tetherflow_backbones.mini.weights import save_vae


@pytest.fixture(scope="session")
def tiny_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as training leaves it, with random weights."""
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    channels = TINY.latent[0]
    vae = AutoencoderKLWan(**TINY.vae, latents_mean=[0.1] * channels, latents_std=[0.5] * channels)
    save_vae(work, vae, TINY)
    Denoiser(TINY.transformer).save(work, "student")
    return work


@pytest.fixture(scope="session")
def tiny_weights(tiny_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder as `export` writes it."""
    out = tmp_path_factory.mktemp("weights")
    export(TINY, tiny_work, "student", out, "A test model.")
    return out
