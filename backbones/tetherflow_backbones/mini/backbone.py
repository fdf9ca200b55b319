"""The `mini` backbone: the bundled miniature, ready to generate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from tetherflow.backbone import BackboneOptions, SamplerSettings
from tetherflow_backbones.causal_wan.backbone import CausalWanBackbone
from tetherflow_backbones.mini.references import clip_seeds, subject_of
from tetherflow_backbones.mini.scenes import held_out_seeds, render_bytes, sample_scenes
from tetherflow_backbones.mini.weights import FILES, PACKAGED, load, sha256
from tetherflow_backbones.wan_vae import WanVAE, decoder_memory


class Mini(CausalWanBackbone):
    """A miniature of Self-Forcing that ships with the package: two shapes that bounce on a gradient.

    Prompts are in words, such as "a red circle and a blue square bounce on a green field"; words it does not
    know do no harm. Colours, shapes and sentences it knows are in `tetherflow_backbones.mini.scenes`.
    """

    class Options(BackboneOptions):
        """Options of the miniature."""

        weights: Path = Field(
            default=PACKAGED, description="Folder with the weights; the bundled ones if omitted."
        )

    def __init__(
        self,
        options: BackboneOptions,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        parity: bool = False,
    ) -> None:
        if not isinstance(options, Mini.Options):
            raise TypeError(f"options are {type(options).__name__}, expected Mini.Options")
        self._folder = options.weights
        weights = load(options.weights)
        self._frame = weights.frame
        size = (weights.frame // 8, weights.frame // 8)
        self._use(weights.transformer.to(device, dtype), size, parity=parity)
        self._words = weights.words.to(device)
        # Decoding stays in float32: it is cheap at this width, and half precision shows on gradients.
        self._network = weights.vae.to(device)
        self._dtype = dtype
        self.sampler = SamplerSettings()

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts, `[B, 24, 96]` in the transformer's type, padding zeroed."""
        return self._words.encode(prompts).to(self._dtype)

    @property
    def decoder_memory(self) -> int:
        """Latent frames after which a decoder has forgotten where it began."""
        return decoder_memory(self._network.decoder)

    def _load_autoencoder(self) -> WanVAE:
        return WanVAE(self._network)

    def weights_digest(self) -> str:
        """SHA-256 over the hashes of the weight files and the configuration."""
        hashes = [sha256(self._folder / name) for name in (*FILES, "config.json")]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def reference_clips(self, prompts: Sequence[str], each: int, frames: int) -> Iterator[Tensor]:
        """Held-out rendered clips of prompts, each uint8 `[frames, 3, H, W]`: their words, other motions.

        Raises:
            PromptError: A prompt does not name two figures and a field.
        """
        device = self._words.places.device
        subjects = [subject_of(prompt) for prompt in prompts]
        for prompt, subject in zip(prompts, subjects, strict=True):
            for seed in clip_seeds(prompt, each, device).split(1):
                yield render_bytes(sample_scenes(seed, subject), frames, self._frame)[0]

    def sample_prompts(self, count: int) -> list[str]:
        """Held-out prompts: the sentences of the first `count` held-out scenes."""
        return sample_scenes(held_out_seeds(0, count)).prompts()
