"""The video autoencoder: streams equal the whole, and equal what diffusers computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tetherflow_backbones.mini.config import TINY
from tetherflow_backbones.mini.scenes import held_out_seeds, render_bytes, sample_scenes
from tetherflow_backbones.wan_vae import WanVAE


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    torch.manual_seed(0)
    statistics = {"latents_mean": [0.3, -0.2, 0.1, 0.0], "latents_std": [0.5, 0.7, 1.1, 0.2]}
    made = WanVAE.from_config({**TINY.vae, **statistics})
    made.network.eval()
    return made


@pytest.fixture(scope="module")
def video() -> Tensor:
    return render_bytes(sample_scenes(held_out_seeds(0, 2)), 41, 32)


def test_encoding_equals_diffusers(vae: WanVAE, video: Tensor) -> None:
    latents = vae.encode(video)
    assert latents.shape == (2, 11, 4, 4, 4)
    plain = (video.float() / 127.5 - 1).transpose(1, 2)
    with torch.no_grad():
        expected = vae.network.encode(plain).latent_dist.mode()
    assert torch.allclose(vae.restore(latents), expected, atol=1e-5)
    assert torch.allclose(vae.restore(vae.normalise(expected)), expected, atol=1e-5)


def test_decoding_equals_diffusers(vae: WanVAE, video: Tensor) -> None:
    latents = vae.encode(video)
    with torch.no_grad():
        expected = vae.network.decode(vae.restore(latents)).sample.transpose(1, 2)
    assert torch.allclose(vae.decoder().intensities(latents), expected, atol=1e-5)


@pytest.mark.parametrize("chunks", [[3, 3, 3, 2], [1] * 11, [5, 1, 5], [2, 9]])
def test_streaming_equals_encoding_at_once(vae: WanVAE, video: Tensor, chunks: list[int]) -> None:
    whole = vae.encode(video)
    encoder = vae.encoder()
    parts = [
        encoder(part)
        for part in video.split([4 * chunks[0] - 3, *(4 * count for count in chunks[1:])], dim=1)
    ]
    assert [part.shape[1] for part in parts] == chunks
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


@pytest.mark.parametrize("chunks", [[3, 3, 3, 2], [1] * 11, [5, 1, 5], [2, 9]])
def test_streaming_equals_decoding_at_once(vae: WanVAE, chunks: list[int]) -> None:
    torch.manual_seed(1)
    latents = torch.randn(2, 11, 4, 4, 4)
    whole = vae.decoder().intensities(latents)
    decoder = vae.decoder()
    parts = [decoder.intensities(part) for part in latents.split(chunks, dim=1)]
    assert [part.shape[1] for part in parts] == [4 * chunks[0] - 3, *(4 * count for count in chunks[1:])]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


def test_the_number_of_frames_a_call_changes_nothing(vae: WanVAE, video: Tensor) -> None:
    single = WanVAE(vae.network, frames_per_call=1)
    latents = vae.encode(video)
    assert torch.allclose(single.encode(video), latents, atol=1e-5)
    assert torch.allclose(
        single.decoder().intensities(latents), vae.decoder().intensities(latents), atol=1e-5
    )


def test_streams_do_not_disturb_each_other(vae: WanVAE) -> None:
    torch.manual_seed(2)
    one, other = torch.randn(2, 1, 6, 4, 4, 4).unbind()
    expected = vae.decode(one)
    first, second = vae.decoder(), vae.decoder()
    parts = []
    for start in (0, 3):
        parts.append(first(one[:, start : start + 3]))
        second(other[:, start : start + 3])
    assert torch.equal(torch.cat(parts, dim=1), expected)


def test_a_stream_keeps_a_constant_amount(vae: WanVAE) -> None:
    encoder, decoder = vae.encoder(), vae.decoder()
    encoder(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8))

    def kept() -> int:
        return sum(t.numel() for t in (*encoder._cache, *decoder._cache) if isinstance(t, Tensor))

    sizes = []
    for _ in range(4):
        encoder(torch.zeros(1, 12, 3, 32, 32, dtype=torch.uint8))
        decoder(torch.zeros(1, 3, 4, 4, 4))
        sizes.append(kept())
    assert sizes[1] == sizes[2] == sizes[3]


def test_frames_that_do_not_fit_are_refused(vae: WanVAE, video: Tensor) -> None:
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        vae.encode(video[:, :8])
    encoder = vae.encoder()
    encoder(video[:, :5])
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"{count} frames do not encode.*4k, k > 0, after its start"):
            encoder(video[:, :count])
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        vae.encode(video.float())
