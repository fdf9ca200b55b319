"""Pooled statistics of cached keys and values."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F


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
    # Two passes: exact enough in float32, and on a CPU far faster than var_mean along such an axis.
    mean = x.mean(dim=-3, dtype=torch.float32)
    return mean, _squares(x, mean.unsqueeze(-3)).mean(dim=-3)


def pooled(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over all N units, `[B, …]`, of each unit's, `[B, N, …]` (see `Statistics.pooled`)."""
    center = mean.mean(dim=1)
    between = _squares(mean, center[:, None]).mean(dim=1)
    return center, variance.mean(dim=1) + between


def _squares(x: Tensor, mean: Tensor) -> Tensor:
    """(x − μ)², float32, in one kernel that reads `x` as it is stored: large tensors cost by the pass."""
    return F.mse_loss(x, mean.expand_as(x), reduction="none")
