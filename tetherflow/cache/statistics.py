"""Pooled statistics of cached keys and values."""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

_MOST_PIECES: Final = 16


@attrs.frozen(eq=False)
class Statistics:
    """Mean and variance of each head's channels over the tokens of one or more units.

    Attributes:
        mean: float32 `[..., heads, head_dim]`.
        variance: population variance (no Bessel correction), float32, of the same shape.
    """

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Statistics:
        """Statistics over the tokens of each unit of `x` `[..., T, heads, head_dim]`."""
        return cls(*moments(x))

    def __getitem__(self, index: slice | tuple[slice | int, ...]) -> Statistics:
        """Views of what `index` selects from both tensors."""
        return Statistics(self.mean[index], self.variance[index])

    def pooled(self) -> Statistics:
        """Statistics over all N units, by the law of total variance: `[B, N, …]` to `[B, …]`.

        Every unit has equally many tokens, so the pool's mean is the mean of the means, and its variance the
        mean of the variances plus the variance of the means. Nothing of the tokens is read again.
        """
        return Statistics(*pooled(self.mean, self.variance))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the tokens of each unit of `x` `[..., T, heads, head_dim]`."""
    if not torch.compiler.is_compiling():
        return _moments(x)
    # A unit's channels are too few to keep a GPU busy, so that it gets pieces of the tokens.
    pieces = max(count for count in range(1, _MOST_PIECES + 1) if x.shape[-3] % count == 0)
    return pooled(*_moments(x.unflatten(-3, (pieces, -1))), dim=-3)


def pooled(mean: Tensor, variance: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and variance over all N units, which are along `dim`, of each unit's (see `Statistics.pooled`)."""
    center = mean.mean(dim=dim)
    between = _squares(mean, center.unsqueeze(dim)).mean(dim=dim)
    return center, variance.mean(dim=dim) + between


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    # Two passes: exact enough in float32, and on a CPU far faster than var_mean along such an axis.
    mean = x.mean(dim=-3, dtype=torch.float32)
    return mean, _squares(x, mean.unsqueeze(-3)).mean(dim=-3)


def _squares(x: Tensor, mean: Tensor) -> Tensor:
    """(x − μ)², float32, in one kernel that reads `x` as it is stored: large tensors cost by the pass."""
    return F.mse_loss(x, mean.expand_as(x), reduction="none")
