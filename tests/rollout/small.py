"""A whole backbone in a few thousand weights: a real transformer, word embeddings, a plain decoder."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from tests.backbones.causal_wan.models import SMALL, save, transformer
from tetherflow_backbones.self_forcing import SelfForcing

LATENT = (3, 4, 4)


class RepeatingDecoder:
    """Shows each latent frame's channels as RGB, four times, the first one once."""

    def __init__(self) -> None:
        self.started = False

    def __call__(self, latents: Tensor) -> Tensor:
        frames = ((latents.tanh() + 1) * 127.5).to(torch.uint8).repeat_interleave(4, dim=1)
        first, self.started = not self.started, True
        return frames[:, 3:] if first else frames


class Small(SelfForcing):
    """`SelfForcing` with a text encoder and a decoder of a few lines."""

    def __init__(
        self, options: SelfForcing.Options, *, parity: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(options, device=torch.device("cpu"), dtype=dtype, parity=parity)
        self.words = nn.Embedding(64, SMALL.text_dim)
        with torch.no_grad():
            self.words.weight.copy_(
                torch.randn(64, SMALL.text_dim, generator=torch.Generator().manual_seed(1))
            )
        self.dtype = dtype

    def expect_prompts(self, prompts: Sequence[str]) -> None:
        """Its words are always there."""

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """A hashed embedding of each prompt's first words; zeros after them."""
        context = torch.zeros(len(prompts), SMALL.text_len, SMALL.text_dim)
        for row, prompt in enumerate(prompts):
            for column, word in enumerate(prompt.split()[: SMALL.text_len]):
                context[row, column] = self.words.weight[zlib.crc32(word.encode()) % 64].detach()
        return context.to(self.dtype)

    def decoder(self) -> RepeatingDecoder:
        """A new decoder."""
        return RepeatingDecoder()


def small_backbone(
    folder: Path, parity: bool = False, dtype: torch.dtype = torch.float32, **options: Any
) -> Small:
    """The backbone, its weights written to a folder."""
    path = save(transformer(spread=1.2), folder / "small.safetensors")
    settings = {"transformer": path, "architecture": attrs.asdict(SMALL), "latent_size": LATENT[1:]} | options
    return Small(SelfForcing.Options.model_validate(settings), parity=parity, dtype=dtype)
