"""The `mini` backbone, on a tiny untrained model, and on the packaged one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tetherflow.errors import PromptError
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
    assert tiny.encoder()(frames).shape == (2, 3, *tiny.latent_shape)


def test_references_show_the_prompts(tiny: Mini) -> None:
    prompts = ["a red circle and a blue square on a green field", "on white, a pink square and a red circle"]
    clips = torch.stack(list(tiny.reference_clips(prompts, 4, 5)))
    assert clips.shape == (8, 5, 3, 32, 32)
    assert len({clip.numpy().tobytes() for clip in clips}) == 8
    red, green, blue = clips.float().mean(dim=(1, 3, 4)).unbind(1)
    assert bool((green > torch.maximum(red, blue))[:4].all())
    assert bool((torch.stack([red, green, blue]).min(dim=0).values > 100)[4:].all())
    # A prompt's clips are its own, whatever is asked for besides.
    assert torch.equal(torch.stack(list(tiny.reference_clips(prompts[1:], 2, 5))), clips[4:6])


def test_prompts_that_cannot_be_rendered_are_told(tiny: Mini) -> None:
    for prompt in ("a cat", "a red circle on a green field", "a red circle and a blue square"):
        with pytest.raises(PromptError, match=f"cannot render '{prompt}'.*name two figures and a field"):
            next(tiny.reference_clips(["a red circle and a blue square on green", prompt], 1, 5))


def test_held_out_prompts_differ(tiny: Mini) -> None:
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
    clip = next(mini.reference_clips(mini.sample_prompts(1), 1, 33))
    decoded = mini.decoder()(mini.encoder()(clip[None]))[0]
    error = (decoded.float() - clip.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 25
