"""Wan's autoencoder on whole clips in one pass, for training: no feature cache, few and large operations.

The same numbers as `encode_frames` and `decode_latents`, which treat the first frame apart. What makes the
first frame special is the resampling in time alone: it is neither merged with another frame nor doubled.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanResample,
    WanResidualDownBlock,
    WanResidualUpBlock,
    WanUpBlock,
    patchify,
    unpatchify,
)
from torch import Tensor, nn


class WholeClip:
    """An autoencoder's two halves as functions of whole clips, differentiable and traceable.

    Args:
        network: The autoencoder, which owns the weights.
    """

    def __init__(self, network: AutoencoderKLWan) -> None:
        self.network = network

    def compile(self, backend: str = "inductor") -> None:
        """Compile encoding, decoding and reconstruction, each as one graph a shape of clip."""
        for name in ("encode", "decode", "reconstruct"):
            plain = getattr(self, name)
            setattr(self, name, torch.compile(plain, backend=backend, fullgraph=True, dynamic=False))

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of a clip's latents.

        Args:
            video: `[B, 3, n, H, W]` in -1..1, n = 1 + 4k.

        Returns:
            Mean and log-variance, each `[B, C, 1 + k, H/8, W/8]`.
        """
        return self._encode(video)

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        encoder, patch = self.network.encoder, self.network.config["patch_size"]
        x = encoder.conv_in(video if patch is None else patchify(video, patch_size=patch))
        x = _through(encoder.down_blocks, x)
        x = encoder.mid_block(x)
        x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x)))
        mean, log_variance = self.network.quant_conv(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Video `[B, 3, 1 + 4(F-1), 8h, 8w]`, nominally in -1..1, of network latents `[B, C, F, h, w]`."""
        return self._decode(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        decoder, patch = self.network.decoder, self.network.config["patch_size"]
        x = decoder.mid_block(decoder.conv_in(self.network.post_quant_conv(latents)))
        x = _through(decoder.up_blocks, x)
        x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
        video: Tensor = x if patch is None else unpatchify(x, patch_size=patch)
        return video

    def reconstruct(self, video: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct a clip from a sample of its posterior.

        Args:
            video: `[B, 3, n, H, W]` in -1..1, n = 1 + 4k.
            noise: unit normal, `[B, C, 1 + k, H/8, W/8]`.

        Returns:
            The reconstruction, and the posterior's mean and log-variance; all float32.
        """
        mean, log_variance = (part.float() for part in self._encode(video))
        output = self._decode(mean + noise * (0.5 * log_variance).exp())
        return output.float(), mean, log_variance


def _through(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Pass a clip's features `[B, C, T, H, W]` through a half's blocks, of Wan2.1's layout or of Wan2.2's."""
    for block in blocks:
        if isinstance(block, WanResample):
            x = _resample(block, x)
        elif isinstance(block, WanResidualDownBlock):
            # The shortcut averages pairs of frames from the end, so that the first one stays alone.
            x = _resample(block.downsampler, _through(block.resnets, x)) + block.avg_shortcut(x)
        elif isinstance(block, WanResidualUpBlock):
            main = _resample(block.upsampler, _through(block.resnets, x))
            x = main if block.avg_shortcut is None else main + block.avg_shortcut(x, first_chunk=True)
        elif isinstance(block, WanUpBlock):
            x = _through([*block.resnets, *(block.upsamplers or [])], x)
        else:
            x = block(x)
    return x


def _resample(resample: WanResample | None, x: Tensor) -> Tensor:
    """Resample features `[B, C, T, H, W]` in space and, where the module does, in time."""
    if resample is None:
        return x
    if resample.mode == "upsample3d":
        x = torch.cat([x[:, :, :1], _doubled(resample, x[:, :, 1:])], dim=2) if x.shape[2] > 1 else x
    frames = x.shape[2]
    x = resample.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).transpose(1, 2)
    if resample.mode == "downsample3d" and frames > 1:
        # Frames 0 1 2, 2 3 4, … merge; frame 0 is kept besides.
        x = torch.cat([x[:, :, :1], resample.time_conv(x)], dim=2)
    return x


def _doubled(resample: WanResample, x: Tensor) -> Tensor:
    """Twice the frames: those after the first, which do not see it."""
    pairs: Tensor = resample.time_conv(x).unflatten(1, (2, -1))  # [B, 2, C, T, H, W]
    return pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
