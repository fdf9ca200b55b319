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
from torch.nn import functional

from tetherflow.cache import CacheEngine
from tetherflow.fp8 import require_fp8
from tetherflow.tuning import Tuning
from tetherflow_backbones.causal_wan.add_norm import Tokens, add_norm_runs
from tetherflow_backbones.causal_wan.architecture import Architecture
from tetherflow_backbones.causal_wan.block import AttentionCache, Block, Entered, Glue, LayerNorm
from tetherflow_backbones.causal_wan.modulation import AllModulations, Modulations, modulate, modulations
from tetherflow_backbones.causal_wan.prompt import Prompt, attend_prompt_runs, without_padding

Prompts = list[Prompt]
"""What each layer attends to of the prompts."""


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
        result: Tensor = self.head(modulate(self.norm(x), *self.modulated(time)))
        return result

    def modulated(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale of normalised tokens, each `[B, F, 1, dim]`."""
        shift, scale = (self.modulation[:, None] + time[:, :, None]).chunk(2, dim=2)
        return shift, 1 + scale


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

        8-bit products replace the weights and cannot be undone. Prompts are to be prepared afterwards.

        Args:
            tuning: what it asks.
            backend: compiler, where it asks to compile.

        Raises:
            KernelError: The device has no 8-bit products.
        """
        weight, arch = self.patch_embedding.weight, self.arch
        fused = tuning.compile and add_norm_runs(weight.device, weight.dtype)
        in_8_bits = tuning.products == "fp8"
        if in_8_bits:
            require_fp8(weight.device, weight.dtype)
        on_prompt = fused and attend_prompt_runs(
            weight.device, weight.dtype, arch.head_dim, in_8_bits=in_8_bits
        )
        for block in self._blocks():
            block.attention = tuning.attention
            block.self_attn.fused, block.cross_attn.fused = fused, on_prompt
            if in_8_bits:
                block.quantise()
        kind = type(self)
        self._glue = None
        if tuning.compile:
            self._glue = Glue.compiled(kind.enter, kind.leave, tuning.chunk_frames, backend)

    def prepare_text(self, context: Tensor) -> Prompts:
        """What each layer attends to of prompts, to be computed once a prompt.

        Args:
            context: text embeddings `[B, text_len, text_dim]`, padding zeroed.
        """
        blocks, alike = list(self._blocks()), 1
        if blocks[0].cross_attn.fused:
            context, alike = without_padding(context)
        text = self.text_embedding(context)
        return [block.cross_attn.prompt(text, alike) for block in blocks]

    def forward(self, latents: Tensor, timesteps: Tensor, text: Prompts, cache: AttentionCache) -> Tensor:
        """Predict the flow (noise minus clean latents) of a chunk.

        Args:
            latents: noisy latents `[B, F, C, H, W]`.
            timesteps: noise level of each frame in 0..1000, `[B, F]`.
            text: what `prepare_text` returned for the B prompts.
            cache: takes in each layer's keys and values and attends.

        Returns:
            The flow, of the latents' shape and type.
        """
        patches = self._run(latents, timesteps, text, cache)
        return self.unpatchify(patches, self.arch.grid(*latents.shape[-2:]))

    def remember(self, latents: Tensor, timesteps: Tensor, text: Prompts, cache: CacheEngine) -> None:
        """Take a chunk into the cache as calling does in a context pass, but predict no flow.

        Of the last block only keys and values are computed.
        """
        if not isinstance(cache, CacheEngine):
            raise TypeError(f"a {type(cache).__name__} keeps nothing; only a CacheEngine does")
        self._run(latents, timesteps, text, cache, keeps=True)

    def _run(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Prompts,
        cache: AttentionCache,
        *,
        keeps: bool = False,
    ) -> Tensor:
        """Patches of the flow; if the last block's keys are but to be kept, tokens, which are of no use."""
        glue = self._glue
        if glue is None or glue.frames != latents.shape[1]:
            return self._run_plain(latents, timesteps, text, cache, keeps=keeps)
        return self._run_compiled(glue, latents, timesteps, text, cache, keeps=keeps)

    def _run_plain(
        self, latents: Tensor, timesteps: Tensor, text: Prompts, cache: AttentionCache, *, keeps: bool
    ) -> Tensor:
        """`_run`, block by block."""
        x: Tensor = self.patch_embedding(latents.transpose(1, 2)).flatten(2).transpose(1, 2).contiguous()
        time, all_times = self._times(timesteps, x.dtype)
        times = all_times.by_block()
        *blocks, last = self._blocks()
        for layer, block in enumerate(blocks):
            x = block(x, times[layer], layer, text[layer], cache)
        layer = len(blocks)
        if keeps and isinstance(cache, CacheEngine):
            cache.keep(layer, *last.project(x, times[layer]))
            return x
        patches: Tensor = self.head(last(x, times[layer], layer, text[layer], cache), time)
        return patches

    def _run_compiled(
        self,
        glue: Glue,
        latents: Tensor,
        timesteps: Tensor,
        text: Prompts,
        cache: AttentionCache,
        *,
        keeps: bool,
    ) -> Tensor:
        """`_run`, by what is compiled between attentions."""
        blocks = list(self._blocks())
        engine = cache if isinstance(cache, CacheEngine) else None

        def attend(layer: int, packed: Tensor) -> Tensor:
            projections = blocks[layer].self_attn
            if engine is not None:
                return engine.attend_packed(layer, packed, projections)
            return cache.attend(layer, *projections.unpacked(packed))

        x, packed, time, all_times = glue.enter(self, latents, timesteps)
        times = all_times.by_block()
        for layer, (block, after) in enumerate(pairwise(blocks)):
            x, query = glue.between(block, x, attend(layer, packed), times[layer])
            attended = block.attend_prompt(query, text[layer])
            x, packed = glue.join(block, after, x, attended, times[layer], times[layer + 1])
        last, block = len(blocks) - 1, blocks[-1]
        if keeps and engine is not None:
            engine.keep_packed(last, packed, block.self_attn)
            return x
        x, query = glue.between(block, x, attend(last, packed), times[last])
        return glue.leave(self, x, block.attend_prompt(query, text[last]), times[last], time)

    def enter(self, latents: Tensor, timesteps: Tensor) -> Entered:
        """What precedes the first attention, to be compiled."""
        x = functional.linear(
            self.patchify(latents), self.patch_embedding.weight.flatten(1), self.patch_embedding.bias
        )
        time, all_times = self._times(timesteps, x.dtype)
        first = next(self._blocks())
        return x, first.before(x, all_times.by_block()[0]), time, all_times

    def leave(self, x: Tensor, attended: Tokens, times: Modulations, time: Tensor) -> Tensor:
        """What follows the last attention, to be compiled: patches of the flow."""
        last = list(self._blocks())[-1]
        result: Tensor = self.head.head(
            last.leave(x, attended, times, self.head.norm, self.head.modulated(time))
        )
        return result

    def _times(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, AllModulations]:
        """Embedded timesteps `[B, F, dim]`, and what they do to the blocks."""
        time = self.time_embedding(sinusoids(timesteps.flatten(), self.arch.freq_dim).to(dtype))
        by_time = self.time_projection(time).unflatten(1, (6, -1)).unflatten(0, timesteps.shape)
        blocks = list(self._blocks())
        bounded = any(block.longest is not None for block in blocks)  # then some products are in 8 bits
        all_times = modulations([block.modulation for block in blocks], by_time, bounded=bounded)
        return time.unflatten(0, timesteps.shape), all_times

    def _blocks(self) -> Iterator[Block]:
        return (block for block in self.blocks if isinstance(block, Block))

    def patchify(self, latents: Tensor) -> Tensor:
        """Latents `[B, F, C, H, W]` to patches `[B, F*T, C*rows*columns]`, T being the grid's cells."""
        _, rows, columns = self.arch.patch_size
        cells: Tensor = latents.unflatten(-1, (-1, columns)).unflatten(3, (-1, rows))
        patches: Tensor = cells.permute(0, 1, 3, 5, 2, 4, 6)  # [B, F, h, w, C, rows, columns]
        return patches.flatten(4).flatten(1, 3)

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
