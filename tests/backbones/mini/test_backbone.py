"""The `mini` backbone, on a tiny untrained model, and on the packaged one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tetherflow_backbones.mini import Mini
from tetherflow_backbones.mini.config import MINI, TINY
from tetherflow_backbones.mini.weights import FILES, PACKAGED

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tiny_weights: Path) -> Mini:
    return Mini(Mini.Options(weights=tiny_weights), device=CPU)


def test_shapes_fit_together(tiny: Mini) -> None:
    assert tiny.latent_shape == TINY.latent
    assert tiny.cache_shape.layers == TINY.transformer.num_layers
    context = tiny.encode_prompts(["a red circle", "zeppelin\n/../"])
    assert context.shape == (2, 24, 16)
    frames = tiny.decoder()(torch.randn(2, 3, *tiny.latent_shape))
    assert frames.shape == (2, 9, 3, 32, 32)
    assert frames.dtype == torch.uint8
    assert tiny.encode_video(frames).shape == (2, 3, *tiny.latent_shape)


def test_references_are_those_of_the_prompts(tiny: Mini) -> None:
    clips = list(tiny.reference_clips(3, 5))
    assert [tuple(clip.shape) for clip in clips] == [(5, 3, 32, 32)] * 3
    assert len(set(tiny.sample_prompts(32))) > 16
    assert tiny.sample_prompts(3) == tiny.sample_prompts(5)[:3]


def test_the_digest_follows_every_file(tiny_weights: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return Mini(Mini.Options(weights=folder), device=CPU).weights_digest()

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_weights.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert digest(copy) == digest(tiny_weights)
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text + "\n")
    assert digest(copy) != digest(tiny_weights)


def test_the_packaged_model_is_small_and_loads() -> None:
    assert sum((PACKAGED / name).stat().st_size for name in FILES) <= 24_000_000
    mini = Mini(Mini.Options(), device=CPU)
    assert mini.latent_shape == MINI.latent
    assert len(mini.weights_digest()) == 64


def test_the_packaged_autoencoder_reconstructs_held_out_clips() -> None:
    mini = Mini(Mini.Options(), device=CPU)
    clip = next(mini.reference_clips(1, 33))
    decoded = mini.decoder()(mini.encode_video(clip[None]))[0]
    error = (decoded.float() - clip.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 25
