"""How the time of its frame modulates a token, before and after attention and the feed-forward network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Modulation(NamedTuple):
    """What time does to a block's tokens at attention, or at the feed-forward network.

    Attributes:
        shift: what is added to normalised tokens, `[B, F, 1, dim]`.
        scale: what they are multiplied by before, likewise.
        gate: what the branch's result is multiplied by, likewise.
        longest: Euclidean norm that no normalised token exceeds once it is scaled and shifted, float32
            scalar; None where products need not know.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor
    longest: Tensor | None


class Modulations(NamedTuple):
    """What time does to a block's tokens, at self-attention and at the feed-forward network."""

    attention: Modulation
    feed_forward: Modulation

    @property
    def frames(self) -> int:
        """How many frames the tokens are of."""
        return self.attention.shift.shape[1]


class AllModulations(NamedTuple):
    """What time does to the tokens of all blocks.

    Attributes:
        shift: of `Modulation`, before attention and the feed-forward network, `[layers, B, F, 2, dim]`.
        scale: likewise.
        gate: likewise.
        longest: float32 `[layers, 2, 4]`, each four times.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor
    longest: Tensor | None

    def by_block(self) -> list[Modulations]:
        """Each block's."""
        longest: list[list[Tensor | None]] = [[None, None]] * len(self.shift)
        if self.longest is not None:
            longest = [list(row) for row in self.longest[..., 0]]
        halves = [
            [
                Modulation(*parts)
                for parts in zip(*(part.split(1, dim=2) for part in block), norms, strict=True)
            ]
            for *block, norms in zip(*self[:3], longest, strict=True)
        ]
        return [Modulations(*both) for both in halves]


def modulations(own: list[Tensor], by_time: Tensor, *, bounded: bool) -> AllModulations:
    """What modulates each block.

    Args:
        own: each block's own part, `[1, 6, dim]`: shift, scale and gate of attention, then of the
            feed-forward network.
        by_time: what time adds to it in every block, `[B, F, 6, dim]`.
        bounded: whether to say how long tokens can be.
    """
    each = (torch.stack(own)[:, :, None] + by_time).unflatten(3, (2, 3))  # [layers, B, F, 2, 3, dim]
    shift, scale, gate = each.unbind(4)
    scale = 1 + scale
    longest = None
    if bounded:
        # Compiled kernels want their arguments 16 bytes apart.
        longest = longest_norm(scale, shift).amax(dim=(1, 2))[..., None].repeat(1, 1, 4)
    return AllModulations(shift, scale, gate, longest)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens `[B, F*T, dim]` by their frame's `[B, F, 1, dim]`."""
    frames: Tensor = x.unflatten(1, (shift.shape[1], -1))
    return (frames * scale + shift).flatten(1, 2)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """Scale tokens `[B, F*T, dim]` by their frame's `[B, F, 1, dim]`."""
    frames: Tensor = x.unflatten(1, (gate.shape[1], -1))
    return (frames * gate).flatten(1, 2)


def longest_norm(scale: Tensor, shift: Tensor) -> Tensor:
    """Euclidean norm that no normalised token exceeds once it is scaled and shifted.

    A token of zero mean and unit variance is √dim long; scaled, at most √dim max |scale|.

    Args:
        scale: `[..., dim]`.
        shift: likewise.

    Returns:
        Float32 `[...]`.
    """
    scaled = scale.float().abs().amax(dim=-1) * scale.shape[-1] ** 0.5
    longest: Tensor = scaled + torch.linalg.vector_norm(shift.float(), dim=-1)
    return longest
