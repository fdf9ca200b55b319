"""What the teacher and the student are: the transformer with the prompts' encoder, in and out of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
from torch import Tensor, nn

from tetherflow_backbones.causal_wan import Architecture, AttentionCache, CausalWanTransformer
from tetherflow_backbones.mini.text import WordEncoder
from tetherflow_backbones.mini.train.attention import LayeredCache
from tetherflow_backbones.mini.weights import PREFIX, load_module, write_tensors

STEPS = (1.0, 0.9375, 5 / 6, 0.625)
"""Noise levels of the few-step sampler: steps 1000, 750, 500, 250 warped with shift 5 (arXiv 2506.08009)."""


class Denoiser(nn.Module):
    """A transformer conditioned on words.

    Args:
        arch: Sizes of the transformer.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.transformer = CausalWanTransformer(arch)
        self.words = WordEncoder(arch.text_dim, arch.text_len)

    def forward(self, latents: Tensor, levels: Tensor, ids: Tensor, cache: AttentionCache) -> Tensor:
        """Predict the flow, noise minus clean latents.

        Args:
            latents: `[B, F, C, H, W]`.
            levels: noise level of each frame in 0..1, `[B, F]`.
            ids: words of each prompt, `[B, text_len]`.
            cache: how the frames attend.

        Returns:
            The flow, of the latents' shape, float32.
        """
        text = self.transformer.prepare_text(self.words(ids))
        flow: Tensor = self.transformer(latents, levels * 1000, text, cache)
        return flow.float()

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the block once for all layers; to compile the whole would take minutes.

        From then on the denoiser takes caches with `at` (see `LayeredCache`) only.
        """
        torch._dynamo.config.recompile_limit = 32
        for block in self.transformer.blocks:
            # The layer's number and its part of the cache stay outside, or each layer would be traced anew.
            whole = torch.compile(block.forward, backend=backend, dynamic=False)
            block.forward = _LayerZero(whole)
        self.transformer.head.compile(backend=backend, dynamic=False)

    def initialise(self) -> None:
        """Start training from small weights: a zero head, and residual branches that begin weak."""
        for module in self.transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        transformer = self.transformer
        nn.init.xavier_uniform_(transformer.patch_embedding.weight.flatten(1))
        for module in transformer.time_embedding:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(transformer.head.head.weight)

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME.safetensors`, transformer and words together."""
        write_tensors(folder / f"{name}.safetensors", self.state_dict())

    @classmethod
    def load(cls, arch: Architecture, folder: Path, name: str) -> Denoiser:
        """Read what `save` wrote."""
        denoiser = cls(arch)
        load_module(denoiser, folder / f"{name}.safetensors")
        return denoiser

    def export(self, folder: Path) -> None:
        """Write the published layout: `transformer.safetensors` with Self-Forcing's names, and the words."""
        names = self.transformer.state_dict()
        write_tensors(folder / "transformer.safetensors", {PREFIX + name: t for name, t in names.items()})
        write_tensors(folder / "text.safetensors", self.words.state_dict())


class _LayerZero:
    """Calls a compiled block as though every layer were the first."""

    def __init__(self, block: Callable[..., Tensor]) -> None:
        self._block = block

    def __call__(
        self, x: Tensor, time: Tensor, layer: int, text: tuple[Tensor, Tensor], cache: LayeredCache
    ) -> Tensor:
        # Under autocast the first block alone would get half precision, and so be compiled apart.
        return self._block(x.float(), time, 0, text, cache.at(layer))


def shifted(times: Tensor, shift: float) -> Tensor:
    """Noise levels of times in 0..1, moved towards noise (arXiv 2403.03206, section 5.3.2)."""
    return shift * times / (1 + (shift - 1) * times)


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Latents `[B, F, C, H, W]` at noise levels `[B, F]`: (1 - s) x + s noise."""
    return torch.lerp(clean, noise, levels[:, :, None, None, None])
