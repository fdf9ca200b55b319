"""Teacher-forced attention: clean and noisy copies of a clip attend as the sampler's cache would.

A clean chunk sees the clean chunks up to itself; a noisy chunk sees the clean chunks before it, and itself
(arXiv 2412.07772, arXiv 2506.08009). No mask is built: each chunk attends densely to a prefix.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tetherflow_backbones.causal_wan import Architecture, WanRotary


class Turn:
    """The rotary embedding of a clip's frames at positions 0, 1, …, in real numbers, which compile.

    Args:
        arch: Sizes of the transformer.
        latent: Rows and columns of a latent frame.
        frames: Latent frames of the clip.
        device: Where the tables live.
    """

    def __init__(
        self, arch: Architecture, latent: tuple[int, int], frames: int, device: torch.device
    ) -> None:
        rotary = WanRotary(arch.head_dim, arch.grid(*latent))
        phases = rotary.phases(torch.arange(frames)).flatten(0, 1).to(device)  # [F*T, 1, D/2]
        self.cos, self.sin = phases.real.float().contiguous(), phases.imag.float().contiguous()

    def __call__(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate `[B, L, heads, D]`, tokens `start`, `start + 1`, … of the clip, to `[B, heads, L, D]`."""
        cos, sin = self.cos[start : start + x.shape[1]], self.sin[start : start + x.shape[1]]
        even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return turned.flatten(-2).to(x.dtype).transpose(1, 2)


def attend_clean(query: Tensor, key: Tensor, value: Tensor, chunk: int) -> Tensor:
    """Clean chunks of `chunk` tokens on themselves and those before; all `[B, heads, L, D]`."""
    parts = [
        functional.scaled_dot_product_attention(
            query[:, :, i : i + chunk], key[:, :, : i + chunk], value[:, :, : i + chunk]
        )
        for i in range(0, query.shape[2], chunk)
    ]
    return torch.cat(parts, dim=2)


def attend_noisy(
    query: Tensor, key: Tensor, value: Tensor, clean_key: Tensor, clean_value: Tensor, chunk: int
) -> Tensor:
    """Noisy chunks of `chunk` tokens on the clean chunks before and on themselves; all `[B, heads, L, D]`."""
    parts = []
    for i in range(0, query.shape[2], chunk):
        own = slice(i, i + chunk)
        keys = torch.cat([clean_key[:, :, :i], key[:, :, own]], dim=2)
        values = torch.cat([clean_value[:, :, :i], value[:, :, own]], dim=2)
        parts.append(functional.scaled_dot_product_attention(query[:, :, own], keys, values))
    return torch.cat(parts, dim=2)


class LayeredCache(Protocol):
    """An attention cache that can hand out one layer, so that all layers run the same compiled code."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; all tensors are `[B, L, heads, D]`, unrotated."""
        ...

    def at(self, layer: int) -> LayeredCache:
        """A cache whose layer 0 is this one's `layer`."""
        ...


class TeacherForcing:
    """Attention of one sequence of a clean half and a noisy half.

    Args:
        turn: Rotary embedding of one half.
        chunk: Tokens of a chunk.
    """

    def __init__(self, turn: Turn, chunk: int) -> None:
        self.turn = turn
        self.chunk = chunk

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; all tensors are `[B, 2*F*T, heads, D]`, the clean half first."""
        half = query.shape[1] // 2
        query, key = query.to(value.dtype), key.to(value.dtype)
        clean_query, noisy_query = self.turn(query[:, :half]), self.turn(query[:, half:])
        clean_key, noisy_key = self.turn(key[:, :half]), self.turn(key[:, half:])
        clean_value, noisy_value = value[:, :half].transpose(1, 2), value[:, half:].transpose(1, 2)
        clean = attend_clean(clean_query, clean_key, clean_value, self.chunk)
        noisy = attend_noisy(noisy_query, noisy_key, noisy_value, clean_key, clean_value, self.chunk)
        return torch.cat([clean, noisy], dim=2).transpose(1, 2)

    def at(self, layer: int) -> TeacherForcing:
        """Nothing here depends on the layer."""
        return self


class CleanPass:
    """Attention of the clean half alone, keeping its keys and values for noisy passes.

    Args:
        turn: Rotary embedding of the half.
        chunk: Tokens of a chunk.
    """

    def __init__(self, turn: Turn, chunk: int) -> None:
        self.turn = turn
        self.chunk = chunk
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._layers: list[CleanPass] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; all tensors are `[B, F*T, heads, D]`."""
        turned, value = self.turn(key.to(value.dtype)), value.transpose(1, 2)
        self._kept.append((turned, value))
        return attend_clean(self.turn(query.to(value.dtype)), turned, value, self.chunk).transpose(1, 2)

    def at(self, layer: int) -> CleanPass:
        """A pass that keeps one layer's keys and values for this one; ask for layers in order."""
        self._layers.append(CleanPass(self.turn, self.chunk))
        return self._layers[-1]

    def kept(self) -> list[tuple[Tensor, Tensor]]:
        """Rotated keys and values, a pair a layer, each `[B, heads, F*T, D]`."""
        return self._kept + [pair for layer in self._layers for pair in layer.kept()]


class NoisyPass:
    """Attention of the noisy half alone, on what a clean pass kept.

    Args:
        turn: Rotary embedding of the half.
        chunk: Tokens of a chunk.
        kept: Rotated keys and values of the clean half, a pair a layer, each `[B, heads, F*T, D]`.
    """

    def __init__(self, turn: Turn, chunk: int, kept: list[tuple[Tensor, Tensor]]) -> None:
        self.turn = turn
        self.chunk = chunk
        self.kept = kept

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; all tensors are `[B, F*T, heads, D]`."""
        query, key = query.to(value.dtype), key.to(value.dtype)
        out = attend_noisy(
            self.turn(query), self.turn(key), value.transpose(1, 2), *self.kept[layer], self.chunk
        )
        return out.transpose(1, 2)

    def at(self, layer: int) -> NoisyPass:
        """A pass on one layer's kept keys and values."""
        return NoisyPass(self.turn, self.chunk, [self.kept[layer]])


class FirstChunk:
    """Attention of first chunks, which see themselves alone.

    Args:
        turn: Rotary embedding of a clip.
    """

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; all tensors are `[B, chunk, heads, D]`."""
        query, key = self.turn(query.to(value.dtype)), self.turn(key.to(value.dtype))
        return functional.scaled_dot_product_attention(query, key, value.transpose(1, 2)).transpose(1, 2)

    def at(self, layer: int) -> FirstChunk:
        """Nothing here depends on the layer."""
        return self
