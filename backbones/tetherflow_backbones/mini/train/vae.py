"""Stage `vae`: trains the autoencoder on rendered clips, then measures its latents' statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional

from tetherflow_backbones.mini.config import Sizes
from tetherflow_backbones.mini.scenes import (
    held_out_seeds,
    render,
    render_bytes,
    sample_scenes,
    training_seeds,
)
from tetherflow_backbones.mini.train.run import Averaged, Budget, fit, record, say
from tetherflow_backbones.mini.weights import load_module, read_json, save_vae, sha256
from tetherflow_backbones.wan_vae import WanVAE, decode_latents, encode_moments, feature_cache

DIVERGENCE_WEIGHT = 3e-5
"""Of the posterior's mean divergence from a unit normal: enough to make the decoder forgive small errors."""


class VAEStage(Averaged):
    """Absolute error of pixels, of their differences in space and time, and of a coarse copy.

    Args:
        network: The autoencoder.
        sizes: Shapes of the miniature.
        clips: Clips a step.
        rate: Peak learning rate.
        seed: Of scenes and posterior samples.
    """

    def __init__(self, network: AutoencoderKLWan, sizes: Sizes, clips: int, rate: float, seed: int) -> None:
        super().__init__(network, rate, decay=0.998, seed=seed)
        self.sizes = sizes
        self.clips = clips

    @property
    def autoencoder(self) -> AutoencoderKLWan:
        """The autoencoder in training."""
        if not isinstance(self.network, AutoencoderKLWan):
            raise TypeError(f"the network is a {type(self.network).__name__}")
        return self.network

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Reconstruct clips rendered on the spot; every fourth step half as many, twice as long."""
        step = self.trainer.global_step
        clips, frames = (max(self.clips // 2, 1), 33) if step % 4 == 3 else (self.clips, 17)
        seeds = training_seeds(self.seed * 1_000_000_007 + step * self.clips, clips, self.device)
        with torch.autocast(self.device.type, enabled=False):
            video = render(sample_scenes(seeds), frames, self.sizes.frame).mul(2).sub(1).transpose(1, 2)
        mean, log_variance = encode_moments(self.autoencoder, video)
        mean, log_variance = mean.float(), log_variance.float()
        noise = torch.randn(mean.shape, device=self.device, generator=self.generator())
        latents = mean + noise * (0.5 * log_variance).exp()
        cache = feature_cache(self.autoencoder.decoder)
        output = decode_latents(self.autoencoder, latents, cache, first=True).float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(output, video) + DIVERGENCE_WEIGHT * divergence


def reconstruction_loss(output: Tensor, video: Tensor) -> Tensor:
    """How far a reconstruction is off; both `[B, 3, n, H, W]` in -1..1.

    Differences of neighbours weigh edges and motion, which are few pixels but all that is sharp.
    """
    error = output - video
    loss = error.abs().mean() + 2 * error.square().mean()
    for dim in (2, 3, 4):
        loss = loss + 0.5 * error.diff(dim=dim).abs().mean()
    coarse = functional.avg_pool3d(error, (1, 4, 4))
    return loss + 0.5 * coarse.abs().mean()


def train_vae(
    sizes: Sizes,
    work: Path,
    budget: Budget,
    seed: int,
    clips: int,
    rate: float,
    resume: bool,
    start: Path | None,
    decoder_only: bool,
) -> None:
    """Run the stage; leaves `vae.safetensors`, `vae.json` (its configuration) and a record in `work`.

    `start` is a folder whose autoencoder training starts from, rather than from random weights. With
    `decoder_only` its encoder and its latents' statistics stay as they are, so that transformers trained on
    its latents stay valid.
    """
    torch.manual_seed(seed)
    network = AutoencoderKLWan(**sizes.vae, **_unit_statistics(sizes))
    if start is not None:
        load_module(network, start / "vae.safetensors")
    if decoder_only:
        network.encoder.requires_grad_(False)
        network.quant_conv.requires_grad_(False)
    count = sum(p.numel() for p in network.parameters())
    say(f"autoencoder: {count / 1e6:.2f} M parameters")
    stage = VAEStage(network, sizes, clips, rate, seed)
    pace = fit(stage, budget, work / "vae.ckpt", resume)

    average = stage.average
    if not isinstance(average, AutoencoderKLWan):
        raise TypeError(f"the average is a {type(average).__name__}")
    device = stage.device
    if decoder_only and start is not None:
        kept = read_json(start / "vae.json")
        mean, std = kept["latents_mean"], kept["latents_std"]
    else:
        mean, std = latent_statistics(average, sizes, device)
    average.register_to_config(latents_mean=mean, latents_std=std)
    say(f"latent std a channel: {[round(s, 3) for s in std]}")
    facts: dict[str, Any] = {
        "steps": stage.trainer.global_step,
        "seconds": round(pace.seconds, 1),
        "seed": seed,
        "clips_a_step": clips,
        "start": "random weights" if start is None else f"sha256 {sha256(start / 'vae.safetensors')}",
        "parameters": count,
        "loss": pace.loss,
        "psnr_db": round(held_out_psnr(WanVAE(average), sizes, device), 2),
    }
    save_vae(work, average, sizes)
    record(work / "vae.record.json", facts)


def _unit_statistics(sizes: Sizes) -> dict[str, list[float]]:
    channels = sizes.latent[0]
    return {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}


@torch.no_grad()
def latent_statistics(
    network: AutoencoderKLWan, sizes: Sizes, device: torch.device, clips: int = 64
) -> tuple[list[float], list[float]]:
    """Mean and deviation of each latent channel over whole training clips."""
    sums, squares = torch.zeros(2, sizes.latent[0], dtype=torch.float64, device=device).unbind()
    count = 0
    for start in range(0, clips, 8):
        scenes = sample_scenes(training_seeds(start, 8, device))
        video = render(scenes, sizes.video_frames, sizes.frame).mul(2).sub(1).transpose(1, 2)
        latents = encode_moments(network, video, 3)[0].double()
        sums = sums + latents.sum((0, 2, 3, 4))
        squares = squares + latents.square().sum((0, 2, 3, 4))
        count += latents[:, 0].numel()
    mean = sums / count
    std = (squares / count - mean.square()).sqrt()
    return mean.tolist(), std.tolist()


@torch.no_grad()
def held_out_psnr(vae: WanVAE, sizes: Sizes, device: torch.device, clips: int = 16) -> float:
    """Peak signal-to-noise ratio of reconstructed held-out clips, dB."""
    errors = []
    for start in range(0, clips, 4):
        video = render_bytes(sample_scenes(held_out_seeds(start, 4, device)), sizes.video_frames, sizes.frame)
        error = vae.decode(vae.encode(video)).float() - video.float()
        errors.append(error.square().mean())
    return float(10 * torch.log10(255**2 / torch.stack(errors).mean()))
