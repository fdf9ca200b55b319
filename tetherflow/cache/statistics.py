"""Pooled statistics of cached keys and values."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


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
        variance, mean = torch.var_mean(x.float(), dim=-3, correction=0)
        return cls(mean, variance)

    def pooled(self) -> Statistics:
        """Statistics over all units of `[B, N, heads, head_dim]`, by the law of total variance: `[B, heads, head_dim]`.

        Every unit has equally many tokens, so the pool's mean is the mean of the means, and its variance the
        mean of the variances plus the variance of the means. Nothing of the tokens is read again.
        """
        variance, mean = torch.var_mean(self.mean, dim=1, correction=0)
        return Statistics(mean, self.variance.mean(dim=1) + variance)

