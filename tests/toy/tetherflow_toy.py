"""A third party's package: a backbone too small to be slow, and stage plugins that misbehave.

The transformer, rotary embedding and cache are the real ones, at random weights; the decoder only enlarges.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from tetherflow import Candidates, Scorer, Stage, hookimpl
from tetherflow.backbone import Backbone, BackboneOptions
from tetherflow.cache import CacheShape
from tetherflow.errors import WeightsError
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer, WanRotary

NOT_A_STAGE = 3


class Encoder:
    """Keeps the last video frame of each latent frame, and every eighth pixel."""

    def __init__(self) -> None:
        self.first = True

    def __call__(self, frames: Tensor) -> Tensor:
        small = frames[:, 0 if self.first else 3 :: 4, :, ::8, ::8].float() / 40 - 3.2
        self.first = False
        return torch.cat([small, small[:, :, :1]], dim=2)


class Decoder:
    """Repeats each latent frame in time and enlarges it eightfold."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.first = True

    def __call__(self, latents: Tensor) -> Tensor:
        time.sleep(self.delay)
        frames = latents.repeat_interleave(4, dim=1)[:, 3 if self.first else 0 :, :3]
        self.first = False
        frames = frames.repeat_interleave(8, dim=-2).repeat_interleave(8, dim=-1)
        return (frames * 40 + 128).clamp(0, 255).to(torch.uint8)


class Toy(Backbone):
    """A causal Wan transformer of two thin layers, randomly initialised."""

    class Options(BackboneOptions):
        weights_seed: int = Field(default=0, ge=0)
        delay: float = Field(default=0.0, ge=0, description="Seconds a decoded chunk takes besides.")
        missing: bool = False
        layers: int = Field(default=2, ge=1, le=4)
        folder: Path = Path(__file__).parent
        reference: bool = Field(default=True, description="Whether it ships clips and prompts.")

    def __init__(
        self,
        options: Options,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        parity: bool = False,
    ) -> None:
        if options.missing:
            raise WeightsError("the toy's weights are missing: toy.safetensors")
        self.options = options
        self.device = device
        arch = Architecture(
            dim=48, ffn_dim=64, num_heads=2, num_layers=options.layers, freq_dim=16, text_dim=16, text_len=8,
            in_dim=4, out_dim=4,
        )  # fmt: skip
        self.arch = arch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.weights_seed)
            network = CausalWanTransformer(arch)
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.15)
        self._transformer = network.eval().requires_grad_(False).to(device, dtype)
        self._rotary = WanRotary(arch.head_dim, arch.grid(8, 8))

    @property
    def transformer(self) -> CausalWanTransformer:
        return self._transformer

    @property
    def rotary(self) -> WanRotary:
        return self._rotary

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(self.arch.num_layers, self.arch.num_heads, self.arch.head_dim, 16)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (4, 8, 8)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        rows = [torch.Generator().manual_seed(sum(prompt.encode()) % 2**31) for prompt in prompts]
        return torch.stack([torch.randn(8, 16, generator=row) for row in rows]).to(self.device)

    def encoder(self) -> Encoder:
        return Encoder()

    def decoder(self) -> Decoder:
        return Decoder(self.options.delay)

    @property
    def decoder_memory(self) -> int:
        return 1

    def weights_digest(self) -> str:
        return f"{self.options.weights_seed:064x}"

    def reference_clips(self, prompts: Sequence[str], each: int, frames: int) -> Iterator[Tensor]:
        if not self.options.reference:
            yield from super().reference_clips(prompts, each, frames)
        random = torch.Generator().manual_seed(1)
        for _ in range(len(prompts) * each):
            first = self.decoder()(torch.randn(1, 1 + -(-frames // 4), *self.latent_shape, generator=random))
            yield first[0, :frames]

    def sample_prompts(self, count: int) -> list[str]:
        if not self.options.reference:
            return super().sample_prompts(count)
        return [f"held out, number {number}" for number in range(count)]


class Raises(Scorer):
    """A scorer that fails."""

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        raise ValueError("the scorer is broken on purpose")


class Bare(Stage):
    """A stage that does not say which of the four it is."""
