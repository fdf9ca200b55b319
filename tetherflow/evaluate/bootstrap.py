"""Intervals by the bootstrap over videos (Efron 1979)."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch

from tetherflow.errors import EvaluationError


@attrs.frozen
class Estimate:
    """A figure and its 95 % interval.

    Attributes:
        value: the figure, over the videos that were measured.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Estimate:
        """Read what `attrs.asdict` gave."""
        return cls(**data)

    def __format__(self, spec: str) -> str:
        """As `0.123 [0.101, 0.150]`; `spec` formats each number, `.3f` unless given."""
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def resampling_weights(videos: int, *, resamples: int = 1000, seed: int = 0) -> torch.Tensor:
    """How often each video is drawn in each resample, with replacement.

    The draws depend on the arguments alone. Figures of the same prompts under two policies, or in two
    windows, are therefore resampled alike, which pairs them: what a prompt does to both cancels in a
    difference.

    Args:
        videos: P, how many videos there are.
        resamples: R, how many times to draw P of them.
        seed: of the draws.

    Returns:
        float64 `[R, P]`; each row sums to P.

    Raises:
        EvaluationError: fewer than two videos, which say nothing of their spread.
    """
    if videos < 2:
        raise EvaluationError("an interval needs at least two videos: measure more prompts")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(videos, (resamples, videos), generator=generator)
    counts = torch.zeros(resamples, videos, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def estimate(value: torch.Tensor, resampled: torch.Tensor) -> Estimate:
    """The 95 % interval of a figure from its values over resamples.

    It is the percentile interval, moved by the resamples' mean error. A Fréchet distance grows as its
    distribution is seen through fewer videos, and a resample holds fewer distinct ones than the sample; left
    alone, that would push the interval up, past the figure itself.

    Args:
        value: float64 scalar, the figure over all videos.
        resampled: float64 `[R]`, the figure over each resample.

    Raises:
        EvaluationError: the figure is not finite.
    """
    if not bool(value.isfinite() & resampled.isfinite().all()):
        raise EvaluationError("a figure is not finite: a window without any motion or drift to compare with")
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    moved = float(value) - math.fsum(resampled.tolist()) / len(resampled)
    return Estimate(float(value), low + moved, high + moved)
