"""The Self-Forcing backbone: the causal Wan transformer from a checkpoint of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from tetherflow.backbone import Backbone, BackboneOptions, SamplerSettings, VideoDecoder
from tetherflow.cache import CacheShape
from tetherflow.errors import WeightsError
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer, WanRotary
from tetherflow_backbones.causal_wan.checkpoint import digest, load_transformer

Size = Annotated[int, Field(ge=1)]
Step = Annotated[int, Field(ge=1, le=1000)]


class Sizes(BaseModel):
    """Sizes of the transformer; the defaults are Wan2.1-T2V-1.3B's (see `Architecture`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: Size = Field(default=1536, description="Width of the residual stream.")
    ffn_dim: Size = Field(default=8960, description="Hidden width of the feed-forward layers.")
    num_heads: Size = Field(default=12, description="Attention heads.")
    num_layers: Size = Field(default=30, description="Transformer blocks.")
    freq_dim: Size = Field(default=256, description="Width of the time step's sinusoids.")
    text_dim: Size = Field(default=4096, description="Width of a prompt token's embedding.")
    text_len: Size = Field(default=512, description="Tokens that a prompt is padded to.")
    in_dim: Size = Field(default=16, description="Channels of a latent frame.")
    out_dim: Size = Field(default=16, description="Channels of a flow.")
    patch_size: tuple[Size, Size, Size] = Field(
        default=(1, 2, 2), description="Frames, rows and columns of latents that make one token."
    )
    eps: float = Field(default=1e-6, gt=0, description="Added to variances before they divide.")

    @model_validator(mode="after")
    def _must_fit_together(self) -> Self:
        self.architecture()
        return self

    def architecture(self) -> Architecture:
        """These sizes as the transformer takes them.

        Raises:
            ValueError: They do not fit together.
        """
        return Architecture(**self.model_dump())


class SelfForcing(Backbone):
    """Self-Forcing (arXiv 2506.08009): Wan2.1 made causal, four denoising steps and a context pass.

    The transformer comes from a safetensors file under the published parameter names. Latents and prompt
    embeddings go in and out; the published text encoder and video autoencoder are not attached yet, so the
    adapter serves replays, benchmarks and programs that bring embeddings of their own.
    """

    class Options(BackboneOptions):
        """Options of the Self-Forcing backbone."""

        transformer: Path = Field(description="Safetensors file of the transformer.")
        architecture: Sizes = Field(
            default=Sizes(), description="Sizes of the transformer; Wan2.1-T2V-1.3B's by default."
        )
        latent_size: tuple[Size, Size] = Field(
            default=(60, 104), description="Rows and columns of a latent frame."
        )
        steps: tuple[Step, ...] = Field(
            default=(1000, 750, 500, 250),
            min_length=1,
            description="Denoising steps of 1000, before they are warped by the shift.",
        )
        shift: float = Field(
            default=5.0, gt=0, description="Shift s of the noise levels, su / (1 + (s - 1)u)."
        )
        context_timestep: float = Field(
            default=0.0, ge=0, le=1000, description="Time step of the context pass; 0 is clean."
        )
        chunk_frames: int = Field(default=3, ge=1, description="Latent frames denoised together.")

        @model_validator(mode="after")
        def _must_split_into_patches(self) -> Self:
            self.architecture.architecture().grid(*self.latent_size)
            return self

    def __init__(
        self,
        options: Options,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        parity: bool = False,
    ) -> None:
        self.options = options
        self.arch = options.architecture.architecture()
        self.sampler = SamplerSettings(
            steps=options.steps,
            shift=options.shift,
            context_timestep=options.context_timestep,
            chunk_frames=options.chunk_frames,
        )
        grid = self.arch.grid(*options.latent_size)
        self._transformer = load_transformer(options.transformer, self.arch, device=device, dtype=dtype)
        if not parity:
            self._transformer.fuse()
        self._rotary = WanRotary(self.arch.head_dim, grid, torch.float64 if parity else torch.float32)
        self._grid = grid

    @property
    def transformer(self) -> CausalWanTransformer:
        """The denoising transformer."""
        return self._transformer

    @property
    def rotary(self) -> WanRotary:
        """The rotary embedding of its queries and keys."""
        return self._rotary

    @property
    def cache_shape(self) -> CacheShape:
        """Layers, heads and tokens of its cache."""
        rows, columns = self._grid
        arch = self.arch
        return CacheShape(arch.num_layers, arch.num_heads, arch.head_dim, rows * columns, rows)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent frame."""
        return (self.arch.in_dim, *self.options.latent_size)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Not available without a text encoder.

        Raises:
            WeightsError: Always.
        """
        raise WeightsError(
            "the 'self-forcing' backbone has no text encoder attached; use 'mini' to generate from prompts"
        )

    def decoder(self) -> VideoDecoder:
        """Not available without a video autoencoder.

        Raises:
            WeightsError: Always.
        """
        raise WeightsError(
            "the 'self-forcing' backbone has no video autoencoder attached; it generates latents only"
        )

    def encode_video(self, frames: Tensor) -> Tensor:
        """Not available without a video autoencoder.

        Raises:
            WeightsError: Always.
        """
        raise WeightsError(
            "the 'self-forcing' backbone has no video autoencoder attached; it takes latents only"
        )

    def weights_digest(self) -> str:
        """SHA-256 of the transformer's file."""
        return digest([self.options.transformer])
