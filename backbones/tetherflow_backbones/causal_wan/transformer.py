"""The causal Wan transformer, with the published checkpoints' parameter names.

The module tree reproduces Wan2.1's `WanModel`, so that published files load by name. What differs is how it
attends: self-attention hands unrotated queries, keys and values to a cache and gets the attended values back,
so this file knows nothing of regions, positions or policies.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from tetherflow.cache import CacheEngine
from tetherflow.fp8 import require_fp8
from tetherflow.tuning import Tuning
from tetherflow_backbones.causal_wan.add_norm import kernels_run
from tetherflow_backbones.causal_wan.architecture import Architecture
from tetherflow_backbones.causal_wan.block import AttentionCache, Block, Glue, LayerNorm
from tetherflow_backbones.causal_wan.modulation import Modulations, modulate, modulations

TextKeysValues = list[tuple[Tensor, Tensor]]
"""Cross-attention keys and values of the prompts, one pair a layer, each `[B, text_len, heads, head_dim]`."""


class Head(nn.Module):
    """Norm, modulation and projection of tokens to patches."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        _, rows, columns = arch.patch_size
        self.norm = LayerNorm(arch.dim, arch.eps, elementwise_affine=False)
        self.head = nn.Linear(arch.dim, rows * columns * arch.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, arch.dim) / arch.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Project tokens `x` `[B, F*T, dim]`; `time` is `[B, F, dim]`. Returns `[B, F*T, rows*columns*C]`."""
        shift, scale = (self.modulation[:, None] + time[:, :, None]).chunk(2, dim=2)
        result: Tensor = self.head(modulate(self.norm(x), shift, 1 + scale))
        return result


class CausalWanTransformer(nn.Module):
    """Wan2.1's diffusion transformer, made causal by attending through a cache (arXiv 2506.08009).

    Args:
        arch: Its sizes. Parameters are initialised at random; load a checkpoint with `load_state_dict`.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.patch_embedding = nn.Conv3d(arch.in_dim, arch.dim, arch.patch_size, arch.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(arch.text_dim, arch.dim), nn.GELU(approximate="tanh"), nn.Linear(arch.dim, arch.dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(arch.freq_dim, arch.dim), nn.SiLU(), nn.Linear(arch.dim, arch.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(arch.dim, 6 * arch.dim))
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.num_layers))
        self.head = Head(arch)
        self._glue: Glue | None = None

    def fuse(self) -> None:
        """Fuse every block's query, key and value projections, and its feed-forward network's first half.

        For inference only, and not to be undone.
        """
        for block in self._blocks():
            block.self_attn.fuse()
            block.ffn.fuse()

    def tune(self, tuning: Tuning, backend: str = "inductor") -> None:
        """Compute as a recipe's runtime asks, for inference only.

        8-bit products replace the weights and cannot be undone.

        Args:
            tuning: what it asks.
            backend: compiler, where it asks to compile.

        Raises:
            KernelError: The device has no 8-bit products.
        """
        weight = self.patch_embedding.weight
        if tuning.products == "fp8":
            require_fp8(weight.device, weight.dtype)
            for block in self._blocks():
                block.quantise()
        self._glue = Glue.compiled(tuning.chunk_frames, backend) if tuning.compile else None
        fused = tuning.compile and kernels_run(weight.device, weight.dtype)
        for block in self._blocks():
            block.attention, block.self_attn.fused = tuning.attention, fused

    def prepare_text(self, context: Tensor) -> TextKeysValues:
        """Cross-attention keys and values of prompts, to be computed once a prompt.

        Args:
            context: text embeddings `[B, text_len, text_dim]`, padding zeroed.
        """
        text = self.text_embedding(context)
        return [block.cross_attn.keys_values(text) for block in self._blocks()]

    def forward(
        self, latents: Tensor, timesteps: Tensor, text: TextKeysValues, cache: AttentionCache
    ) -> Tensor:
        """Predict the flow (noise minus clean latents) of a chunk.

        Args:
            latents: noisy latents `[B, F, C, H, W]`.
            timesteps: noise level of each frame in 0..1000, `[B, F]`.
            text: what `prepare_text` returned for the B prompts.
            cache: takes in each layer's keys and values and attends.

        Returns:
            The flow, of the latents' shape and type.
        """
        x, time, grid = self._embed(latents, timesteps)
        x = self._run(x, self._modulations(time), text, cache)
        return self.unpatchify(self.head(x, time), grid)

    def remember(self, latents: Tensor, timesteps: Tensor, text: TextKeysValues, cache: CacheEngine) -> None:
        """Take a chunk into the cache as calling does in a context pass, but predict no flow.

        Of the last block only keys and values are computed.
        """
        x, time, _ = self._embed(latents, timesteps)
        self._run(x, self._modulations(time), text, cache, keeps=True)

    def _embed(self, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Tokens `[B, F*T, dim]`, embedded times `[B, F, dim]`, and a frame's rows and columns of tokens."""
        x = self.patch_embedding(latents.transpose(1, 2))  # [B, dim, F, rows, columns]
        grid = (x.shape[3], x.shape[4])
        x = x.flatten(2).transpose(1, 2).contiguous()  # as every block leaves it, so that they compile as one
        time = self.time_embedding(sinusoids(timesteps.flatten(), self.arch.freq_dim).type_as(x))
        return x, time.unflatten(0, timesteps.shape), grid

    def _modulations(self, time: Tensor) -> list[Modulations]:
        """What modulates each block, of embedded times `[B, F, dim]`."""
        by_time = self.time_projection(time.flatten(0, 1)).unflatten(1, (6, -1)).unflatten(0, time.shape[:2])
        blocks = list(self._blocks())
        bounded = any(block.longest is not None for block in blocks)  # then some products are in 8 bits
        return modulations([block.modulation for block in blocks], by_time, bounded=bounded)

    def _run(
        self,
        x: Tensor,
        times: list[Modulations],
        text: TextKeysValues,
        cache: AttentionCache,
        *,
        keeps: bool = False,
    ) -> Tensor:
        """Tokens after all blocks; if an engine is but to keep the last one's keys and values, before it."""
        blocks, last = list(self._blocks()), self.arch.num_layers - 1
        engine = cache if isinstance(cache, CacheEngine) else None
        if keeps and engine is None:
            raise TypeError(f"a {type(cache).__name__} keeps nothing; only a CacheEngine does")
        glue = self._glue
        if glue is None or glue.frames != times[0].frames:
            for layer, block in enumerate(blocks[:last] if keeps else blocks):
                x = block(x, times[layer], layer, text[layer], cache)
            if keeps and engine is not None:
                engine.keep(last, *blocks[last].project(x, times[last]))
            return x

        def attend(layer: int, packed: Tensor) -> Tensor:
            projections = blocks[layer].self_attn
            if engine is not None:
                return engine.attend_packed(layer, packed, projections)
            return cache.attend(layer, *projections.unpacked(packed))

        packed = glue.before(blocks[0], x, times[0])
        for layer, (block, after) in enumerate(pairwise(blocks)):
            x, query = glue.between(block, x, attend(layer, packed), times[layer])
            attended = block.attention(query, *text[layer])
            x, packed = glue.join(block, after, x, attended, times[layer], times[layer + 1])
        block = blocks[last]
        if keeps and engine is not None:
            engine.keep_packed(last, packed, block.self_attn)
            return x
        x, query = glue.between(block, x, attend(last, packed), times[last])
        return glue.after(block, x, block.attention(query, *text[last]), times[last])

    def _blocks(self) -> Iterator[Block]:
        return (block for block in self.blocks if isinstance(block, Block))

    def unpatchify(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches `[B, F*T, rows*columns*C]` to latents `[B, F, C, H, W]`, T being the grid's cells."""
        _, rows, columns = self.arch.patch_size
        cells: Tensor = x.unflatten(1, (-1, *grid))
        patches: Tensor = cells.unflatten(-1, (rows, columns, -1))  # [B, F, h, w, rows, columns, C]
        return patches.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of `positions` `[N]`: cosines then sines, float64 `[N, width]`."""
    half = width // 2
    rates = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=positions.device) / half)
    angles = positions.to(torch.float64)[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
