"""The causal Wan transformer, with the published checkpoints' parameter names.

The module tree reproduces Wan2.1's `WanModel`, so that published files load by name. What differs is how it
attends: self-attention hands unrotated queries, keys and values to a cache and gets the attended values back,
so this file knows nothing of regions, positions or policies.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from tetherflow_backbones.causal_wan.architecture import Architecture

TextKeysValues = list[tuple[Tensor, Tensor]]
"""Cross-attention keys and values of the prompts, one pair a layer, each `[B, heads, text_len, head_dim]`."""


class AttentionCache(Protocol):
    """What self-attention reads from: the cache engine when generating, a mask when training."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from a pass's tokens; all tensors are `[B, F*T, heads, head_dim]`, unrotated."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32, whatever the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        normal = functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        return normal.type_as(x)


class Attention(nn.Module):
    """Projections and query/key norms that self- and cross-attention share."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.heads = arch.num_heads
        self.q = nn.Linear(arch.dim, arch.dim)
        self.k = nn.Linear(arch.dim, arch.dim)
        self.v = nn.Linear(arch.dim, arch.dim)
        self.o = nn.Linear(arch.dim, arch.dim)
        self.norm_q = RMSNorm(arch.dim, arch.eps)
        self.norm_k = RMSNorm(arch.dim, arch.eps)

    def split(self, x: Tensor) -> Tensor:
        """`[B, L, dim]` to `[B, L, heads, head_dim]`."""
        return x.view(*x.shape[:-1], self.heads, -1)


class SelfAttention(Attention):
    """Self-attention of a pass's tokens on the cache's view."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.qkv: nn.Linear | None = None

    def fuse(self) -> None:
        """Replace the three projections by one product over their joined weights, and free the originals."""
        if self.qkv is not None:
            return
        parts = (self.q, self.k, self.v)
        fused = nn.Linear(self.q.in_features, 3 * self.q.out_features, device="meta")
        fused.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
        fused.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
        self.qkv = fused
        del self.q, self.k, self.v

    def forward(self, x: Tensor, layer: int, cache: AttentionCache) -> Tensor:
        """Attend from `x` `[B, L, dim]`, whose keys and values the cache of `layer` takes in."""
        if self.qkv is not None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        out = cache.attend(layer, self.split(self.norm_q(q)), self.split(self.norm_k(k)), self.split(v))
        result: Tensor = self.o(out.flatten(2))
        return result


class CrossAttention(Attention):
    """Cross-attention on the prompt, whose keys and values are computed once a prompt."""

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of embedded text `[B, text_len, dim]`, each `[B, heads, text_len, head_dim]`."""
        key = self.split(self.norm_k(self.k(text))).transpose(1, 2)
        return key, self.split(self.v(text)).transpose(1, 2)

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from `x` `[B, L, dim]` to a prompt's keys and values."""
        query = self.split(self.norm_q(self.q(x))).transpose(1, 2)
        out = functional.scaled_dot_product_attention(query, *text)
        result: Tensor = self.o(out.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """One transformer block: self-attention, cross-attention and feed-forward, modulated by time a frame."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.norm1 = LayerNorm(arch.dim, arch.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(arch)
        self.norm3 = LayerNorm(arch.dim, arch.eps)
        self.cross_attn = CrossAttention(arch)
        self.norm2 = LayerNorm(arch.dim, arch.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(arch.dim, arch.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(arch.ffn_dim, arch.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, arch.dim) / arch.dim**0.5)

    def forward(
        self, x: Tensor, time: Tensor, layer: int, text: tuple[Tensor, Tensor], cache: AttentionCache
    ) -> Tensor:
        """Transform tokens `x` `[B, F*T, dim]`; `time` is `[B, F, 6, dim]`, one modulation a frame."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation[:, None] + time).chunk(6, dim=2)
        x = x + gated(self.self_attn(modulate(self.norm1(x), shift_a, scale_a), layer, cache), gate_a)
        x = x + self.cross_attn(self.norm3(x), text)
        return x + gated(self.ffn(modulate(self.norm2(x), shift_f, scale_f)), gate_f)


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
        result: Tensor = self.head(modulate(self.norm(x), shift, scale))
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

    def fuse(self) -> None:
        """Fuse every block's query, key and value projections; inference only, and not to be undone."""
        for block in self.blocks:
            if isinstance(block, Block):
                block.self_attn.fuse()

    def prepare_text(self, context: Tensor) -> TextKeysValues:
        """Cross-attention keys and values of prompts, to be computed once a prompt.

        Args:
            context: text embeddings `[B, text_len, text_dim]`, padding zeroed.
        """
        text = self.text_embedding(context)
        return [block.cross_attn.keys_values(text) for block in self.blocks if isinstance(block, Block)]

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
        x = self.patch_embedding(latents.transpose(1, 2))  # [B, dim, F, rows, columns]
        grid = (x.shape[3], x.shape[4])
        x = x.flatten(2).transpose(1, 2)
        time = self.time_embedding(sinusoids(timesteps.flatten(), self.arch.freq_dim).type_as(x))
        modulation = self.time_projection(time).unflatten(1, (6, -1)).unflatten(0, timesteps.shape)
        for layer, block in enumerate(self.blocks):
            x = block(x, modulation, layer, text[layer], cache)
        return self.unpatchify(self.head(x, time.unflatten(0, timesteps.shape)), grid)

    def unpatchify(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches `[B, F*T, rows*columns*C]` to latents `[B, F, C, H, W]`, T being the grid's cells."""
        _, rows, columns = self.arch.patch_size
        cells: Tensor = x.unflatten(1, (-1, *grid))
        patches: Tensor = cells.unflatten(-1, (rows, columns, -1))  # [B, F, h, w, rows, columns, C]
        return patches.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens `[B, F*T, dim]` by their frame's `[B, F, 1, dim]`."""
    frames: Tensor = x.unflatten(1, (shift.shape[1], -1))
    return (frames * (1 + scale) + shift).flatten(1, 2)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """Scale tokens `[B, F*T, dim]` by their frame's `[B, F, 1, dim]`."""
    frames: Tensor = x.unflatten(1, (gate.shape[1], -1))
    return (frames * gate).flatten(1, 2)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of `positions` `[N]`: cosines then sines, float64 `[N, width]`."""
    half = width // 2
    rates = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=positions.device) / half)
    angles = positions.to(torch.float64)[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
