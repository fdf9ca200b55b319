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
from tetherflow_backbones.mini.train.devices import own_device, rank, world
from tetherflow_backbones.mini.train.run import Averaged, Budget, fit, record, say
from tetherflow_backbones.mini.weights import load_module, read_json, save_vae, sha256
from tetherflow_backbones.wan_vae import TEMPORAL, WanVAE
from tetherflow_backbones.wan_vae_whole import WholeClip

DIVERGENCE_WEIGHT = 3e-5
"""Of the posterior's mean divergence from a unit normal: enough to make the decoder forgive small errors."""

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory layouts with neighbouring channels, by dimensions of a convolution's weight."""

Statistics = tuple[list[float], list[float]]
"""Mean and deviation of each latent channel."""


class VAEStage(Averaged):
    """Reconstructs rendered clips, edges first; a light prior keeps the latents tame.

    Args:
        network: The autoencoder.
        sizes: Shapes of the miniature.
        work: Folder for the result.
        clips: Clips a step, on each device.
        rate: Peak learning rate.
        seed: Of scenes and posterior samples.
        muon: Whether hidden matrices take Muon's steps.
        compile_: Whether to compile the network.
        long_every: Every so many steps takes half as many clips, twice as long; 0 for never.
        kept: Mean and deviation of the latents, if they are known and stay.
    """

    def __init__(
        self,
        network: AutoencoderKLWan,
        sizes: Sizes,
        work: Path,
        clips: int,
        rate: float,
        seed: int,
        muon: bool,
        compile_: bool,
        long_every: int,
        kept: Statistics | None,
    ) -> None:
        super().__init__(network, rate, decay=0.998, seed=seed, muon=muon)
        self.sizes = sizes
        self.work = work
        self.clips = clips
        self.long_every = long_every
        self.kept = kept
        self.whole = WholeClip(network)
        if compile_:
            self.whole.compile()

    def hand_on(self) -> None:
        """Write the averaged autoencoder, with its latents' statistics: `vae.safetensors` and `vae.json`."""
        average = self.averaged()
        mean, std = self.kept or latent_statistics(average, self.sizes, self.device)
        average.register_to_config(latents_mean=mean, latents_std=std)
        save_vae(self.work, average, self.sizes)

    def averaged(self) -> AutoencoderKLWan:
        """The average, which is what is kept."""
        if not isinstance(self.average, AutoencoderKLWan):
            raise TypeError(f"the average is a {type(self.average).__name__}")
        return self.average

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Reconstruct clips rendered on the spot."""
        step = self.trainer.global_step
        long = self.long_every > 0 and step % self.long_every == self.long_every - 1
        clips, frames = (max(self.clips // 2, 1), 33) if long else (self.clips, 17)
        start = self.seed * 1_000_000_007 + (step * world() + rank()) * self.clips
        with torch.autocast(self.device.type, enabled=False):
            scenes = sample_scenes(training_seeds(start, clips, self.device))
            video = render(scenes, frames, self.sizes.frame).mul(2).sub(1).transpose(1, 2)
        channels, rows, columns = self.sizes.latent
        shape = (clips, channels, 1 + frames // TEMPORAL, rows, columns)
        noise = torch.randn(shape, device=self.device, generator=self.generator())
        output, mean, log_variance = self.whole.reconstruct(video, noise)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(output, video) + DIVERGENCE_WEIGHT * divergence


def reconstruction_loss(output: Tensor, video: Tensor) -> Tensor:
    """How far a reconstruction is off; both `[B, 3, n, H, W]` in -1..1.

    The root of each clip's mean square, edges weighing up to five times as much: nearly all that remains
    of the error lies there, and a root keeps its pull when the error is small. Absolute errors, of pixels and
    of differences to neighbours in space and time, make what is left sharp.
    """
    error = output - video
    weighted = edges(video).mul(4).add(1) * error.square()
    loss = weighted.mean((1, 2, 3, 4)).sqrt().mean() + error.abs().mean()
    for dim in (2, 3, 4):
        loss = loss + 0.5 * error.diff(dim=dim).abs().mean()
    return loss


@torch.no_grad()
def edges(video: Tensor) -> Tensor:
    """Steps between neighbouring pixels, spread over 5 pixels, at most 1: `[B, 1, n, H, W]`."""
    down, right = video.diff(dim=3).abs().amax(1, keepdim=True), video.diff(dim=4).abs().amax(1, keepdim=True)
    steps = functional.pad(down, (0, 0, 1, 0)) + functional.pad(right, (1, 0, 0, 0))
    return functional.max_pool3d(steps.clamp(max=1), (1, 5, 5), 1, (0, 2, 2))


def train_vae(
    sizes: Sizes,
    work: Path,
    budget: Budget,
    seed: int,
    clips: int,
    rate: float,
    resume: bool,
    muon: bool,
    compile_: bool,
    start: Path | None,
    decoder_only: bool,
    long_every: int,
    channels_last: bool,
) -> None:
    """Run the stage; leaves `vae.safetensors`, `vae.json` (its configuration) and a record in `work`.

    `start` is a folder whose autoencoder training starts from, rather than from random weights. With
    `decoder_only` its encoder and its latents' statistics stay as they are, so that transformers trained on
    its latents stay valid. `channels_last` changes the weights' layout in memory, for speed alone.
    """
    torch.manual_seed(seed)
    network = AutoencoderKLWan(**sizes.vae, **_unit_statistics(sizes))
    kept: Statistics | None = None
    if start is not None:
        load_module(network, start / "vae.safetensors")
    if start is not None and decoder_only:
        network.encoder.requires_grad_(False)
        network.quant_conv.requires_grad_(False)
        config = read_json(start / "vae.json")
        kept = config["latents_mean"], config["latents_std"]
    if channels_last:
        for part in network.parameters():
            if part.ndim >= 4:
                part.data = part.data.to(memory_format=LAYOUTS[part.ndim])
    count = sum(p.numel() for p in network.parameters())
    say(f"autoencoder: {count / 1e6:.2f} M parameters")
    device = own_device()
    stage = VAEStage(network.to(device), sizes, work, clips, rate, seed, muon, compile_, long_every, kept)
    pace = fit(stage, budget, work / "vae.ckpt", resume)
    if rank() != 0:
        return
    stage.hand_on()
    average = stage.averaged()
    say(f"latent std a channel: {[round(s, 3) for s in average.config['latents_std']]}")
    facts: dict[str, Any] = {
        "steps": stage.trainer.global_step,
        "seconds": round(pace.seconds, 1),
        "seed": seed,
        "clips_a_step": clips * world(),
        "rate": rate,
        "muon": muon,
        "start": "random weights" if start is None else f"sha256 {sha256(start / 'vae.safetensors')}",
        "parameters": count,
        "loss": pace.loss,
        "psnr_db": round(held_out_psnr(WanVAE(average), sizes, device), 2),
    }
    record(work / "vae.record.json", facts)


def _unit_statistics(sizes: Sizes) -> dict[str, list[float]]:
    channels = sizes.latent[0]
    return {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}


@torch.no_grad()
def latent_statistics(
    network: AutoencoderKLWan, sizes: Sizes, device: torch.device, clips: int = 64
) -> Statistics:
    """Mean and deviation of each latent channel over whole training clips."""
    sums, squares = torch.zeros(2, sizes.latent[0], dtype=torch.float64, device=device).unbind()
    count = 0
    for start in range(0, clips, 8):
        scenes = sample_scenes(training_seeds(start, 8, device))
        video = render(scenes, sizes.video_frames, sizes.frame).mul(2).sub(1).transpose(1, 2)
        latents = WholeClip(network).encode(video)[0].double()
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
