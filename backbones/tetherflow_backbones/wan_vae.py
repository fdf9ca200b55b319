"""Wan's causal video autoencoder: frames to normalised latents, and latents to frames as they come.

The network is diffusers' `AutoencoderKLWan` (Wan2.1, arXiv 2503.20314, section 4.1), at any width. This
module drives its encoder and decoder with the causal feature cache held outside the network, so that any
number of streams decode at once, each in constant memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn

from tetherflow.tuning import Tuning
from tetherflow_backbones.wan_vae_compiled import compile_blocks, restore_blocks

TEMPORAL = 4
"""Video frames a latent frame stands for; the first stands for one."""


class WanVAE:
    """Encodes video to latents of about unit variance a channel, and decodes them.

    Args:
        network: The autoencoder; its `latents_mean` and `latents_std` normalise the latents.
        frames_per_call: Latent frames that pass through the network at once. More is faster on small frames;
            1 needs least memory. The result does not depend on it.
    """

    def __init__(self, network: AutoencoderKLWan, frames_per_call: int = 3) -> None:
        if frames_per_call < 1:
            raise ValueError(f"frames_per_call is {frames_per_call}, it must be at least 1")
        self.network = network
        self.frames_per_call = self._usual_frames = frames_per_call
        self._device: torch.device | None = None
        self._known_statistics: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], frames_per_call: int = 3) -> WanVAE:
        """An autoencoder of the given `AutoencoderKLWan` arguments, with random weights."""
        return cls(AutoencoderKLWan(**config), frames_per_call)

    @property
    def latent_dim(self) -> int:
        """Channels of a latent frame."""
        return int(self.network.config["z_dim"])

    def encode(self, frames: Tensor) -> Tensor:
        """Encode a whole clip: uint8 `[B, 1 + 4(F-1), 3, H, W]` to latents `[B, F, C, H/8, W/8]`."""
        return self.encoder()(frames)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a whole clip: latents `[B, F, C, H/8, W/8]` to uint8 `[B, 1 + 4(F-1), 3, H, W]`."""
        return self.decoder()(latents)

    def encoder(self) -> WanEncoder:
        """A new stream's encoder."""
        return WanEncoder(self)

    def decoder(self) -> WanDecoder:
        """A new stream's decoder."""
        return WanDecoder(self)

    @torch.inference_mode(False)  # as in moving: parameters are laid out anew
    def tune(self, tuning: Tuning, backend: str = "inductor") -> None:
        """Decode as a recipe's runtime asks.

        Args:
            tuning: what it asks. To save memory, latent frames pass through the network one by one.
            backend: compiler, where it asks to compile.
        """
        decoder = self.network.decoder
        self.frames_per_call = 1 if tuning.low_memory else self._usual_frames
        if tuning.compile:
            compile_blocks(decoder, min(tuning.chunk_frames, self.frames_per_call), backend)
        else:
            restore_blocks(decoder)

    def rest(self) -> None:
        """Move the network to the host's memory; it comes back when it encodes or decodes next."""
        self._device = self._device or next(self.network.parameters()).device
        self._move(torch.device("cpu"))

    def awake(self) -> AutoencoderKLWan:
        """The network, on its device."""
        if self._device is not None:
            self._move(self._device)
        return self.network

    @torch.inference_mode(False)  # a rollout's own would leave parameters that cannot be moved again
    def _move(self, device: torch.device) -> None:
        self.network.to(device)

    def normalise(self, latents: Tensor) -> Tensor:
        """The network's latents `[B, C, F, h, w]` to normalised ones `[B, F, C, h, w]`."""
        mean, std = self._statistics(latents)
        return ((latents - mean) / std).transpose(1, 2)

    def restore(self, latents: Tensor) -> Tensor:
        """Normalised latents `[B, F, C, h, w]` to the network's own `[B, C, F, h, w]`."""
        latents = latents.transpose(1, 2)
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation a channel, `[C, 1, 1, 1]`, of the tensor's device and type."""
        key = (like.device, like.dtype)
        if key not in self._known_statistics:  # copied once: a copy to a GPU would wait for it in every chunk
            config = self.network.config
            with torch.inference_mode(False):
                mean, std = (
                    torch.tensor(config[name], device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)
                    for name in ("latents_mean", "latents_std")
                )
            self._known_statistics[key] = (mean, std)
        return self._known_statistics[key]


class WanEncoder:
    """Encodes one video piece by piece; what it keeps does not grow with the video's length.

    Args:
        vae: The autoencoder whose encoder is used; several streams may share it.
    """

    def __init__(self, vae: WanVAE) -> None:
        self._vae = vae
        self._cache = feature_cache(vae.network.encoder)
        self._begun = False

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Encode the stream's next frames to the latents' most likely values.

        Args:
            frames: RGB, uint8 `[B, n, 3, H, W]`: n = 1 + 4(F-1) at the stream's start, 4F later.

        Returns:
            Normalised latents, float32 `[B, F, C, H/8, W/8]`.

        Raises:
            ValueError: The frames' number or type does not fit.
        """
        vae, count = self._vae, frames.shape[1]
        if frames.dtype != torch.uint8:
            raise ValueError(f"frames are {frames.dtype}, expected torch.uint8")
        if not count or count % TEMPORAL != (0 if self._begun else 1):
            wanted = "4k, k > 0, after its start" if self._begun else "1 + 4k at its start"
            raise ValueError(f"{count} frames do not encode: the causal encoder takes {wanted}")
        weight = next(vae.awake().parameters())
        video = frames.to(weight.device).to(weight.dtype).div_(127.5).sub_(1).transpose(1, 2)
        mean, _ = encode_frames(vae.network, video, self._cache, not self._begun, vae.frames_per_call)
        self._begun = True
        return vae.normalise(mean.float())


class WanDecoder:
    """Decodes one stream chunk by chunk; what it keeps does not grow with the stream's length.

    Args:
        vae: The autoencoder whose decoder is used; several streams may share it.
    """

    def __init__(self, vae: WanVAE) -> None:
        self._vae = vae
        self._cache = feature_cache(vae.network.decoder)
        self._begun = False

    def __call__(self, latents: Tensor) -> Tensor:
        """Decode the stream's next latent frames.

        Args:
            latents: normalised latents `[B, F, C, h, w]`.

        Returns:
            RGB frames, uint8 `[B, n, 3, 8h, 8w]`: n = 1 + 4(F-1) at the stream's start, 4F later.
        """
        return self.intensities(latents).add(1).mul(127.5).round().to(torch.uint8)

    @torch.no_grad()
    def intensities(self, latents: Tensor) -> Tensor:
        """As calling, but the frames are float32 in -1..1."""
        vae = self._vae
        weight = next(vae.awake().parameters())
        z = vae.restore(latents.to(weight.device, torch.float32)).to(weight.dtype)
        video = decode_latents(vae.network, z, self._cache, not self._begun, vae.frames_per_call)
        self._begun = True
        return video.float().clamp(-1, 1).transpose(1, 2)


def feature_cache(network: nn.Module) -> list[Any]:
    """An empty causal feature cache for an encoder or a decoder: a place for each causal convolution."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())


def decoder_memory(decoder: nn.Module) -> int:
    """Latent frames after which a stream's decoder has forgotten where it began.

    Each causal convolution sees some frames back, at its own temporal resolution, which a `time_conv`
    doubles. A stream's first latent frame, which is decoded in its own way, must be out of sight altogether.

    Args:
        decoder: the network's decoder.
    """
    seen_back: list[int] = [0]  # frames, by temporal resolution, from the latents' up
    for name, module in decoder.named_modules():
        if isinstance(module, WanCausalConv3d):
            seen_back[-1] += module.kernel_size[0] - 1
            if name.endswith("time_conv"):
                seen_back.append(0)
    back = (1 << len(seen_back) - 1) - 1  # from the last video frame of a latent frame to its first
    for frames in reversed(seen_back[1:]):
        back = (back + frames) // 2
    return back + seen_back[0] + 1


def encode_frames(
    network: AutoencoderKLWan,
    video: Tensor,
    cache: list[Any],
    first: bool,
    frames_per_call: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Posterior of the latents of a video's next frames, differentiable; updates the stream's cache.

    Args:
        network: The autoencoder.
        video: `[B, 3, n, H, W]` in -1..1: n = 1 + 4(F-1) when first, else 4F.
        cache: the stream's feature cache.
        first: whether the stream begins here.
        frames_per_call: Latent frames that pass through at once; all if None.

    Returns:
        Mean and log-variance, each `[B, C, F, H/8, W/8]`.
    """
    patch = network.config["patch_size"]
    x = video if patch is None else patchify(video, patch_size=patch)
    parts = []
    if first:
        parts.append(network.encoder(x[:, :, :1], feat_cache=cache, feat_idx=[0]))
        x = x[:, :, 1:]
    if x.shape[2]:
        for piece in x.split(TEMPORAL * frames_per_call if frames_per_call else x.shape[2], dim=2):
            parts.append(network.encoder(piece, feat_cache=cache, feat_idx=[0]))
    mean, log_variance = network.quant_conv(torch.cat(parts, dim=2)).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode_latents(
    network: AutoencoderKLWan,
    latents: Tensor,
    cache: list[Any],
    first: bool,
    frames_per_call: int | None = None,
) -> Tensor:
    """Decode the next latent frames of a stream, differentiable; updates the stream's cache.

    Args:
        network: The autoencoder.
        latents: `[B, C, F, h, w]`, as the network has them.
        cache: the stream's feature cache.
        first: whether the stream begins here.
        frames_per_call: latent frames that pass through at once; all if None.

    Returns:
        Video `[B, 3, n, 8h, 8w]`, nominally in -1..1: n = 1 + 4(F-1) when first, else 4F.
    """
    x = network.post_quant_conv(latents)
    parts = []
    if first:
        # Wan decodes the first latent frame alone, to a single video frame, as it encoded it.
        parts.append(network.decoder(x[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True))
        x = x[:, :, 1:]
    if x.shape[2]:
        for piece in x.split(frames_per_call or x.shape[2], dim=2):
            parts.append(network.decoder(piece, feat_cache=cache, feat_idx=[0]))
    video = torch.cat(parts, dim=2)
    patch = network.config["patch_size"]
    result: Tensor = video if patch is None else unpatchify(video, patch_size=patch)
    return result
