"""A schedule driven by what it measures: how far newcomers have drifted from what is trusted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from tetherflow import Newcomers, ScheduleOptions, SignalSchedule, Statistics


class DriftDistance(SignalSchedule):
    """Move from `low` to `high` as newcomers' statistics move away from the trusted pool's.

    low + (high − low) · clamp((d − near) / (far − near), 0, 1), where d is the mean, over newcomers, heads
    and channels, of keys, of values or of both, of

    d_c = √((μ_x − μ_t)² + (σ_x − σ_t)²) / σ_t:

    the 2-Wasserstein distance between the normal distributions of a newcomer's channel and of the trusted
    pool's, in the pool's deviations. It is how far adaptive instance normalisation at full strength moves the
    channel's tokens (root mean square), since that map is the optimal transport between the two. Where σ_t is
    nothing, so that no distance can be measured by it, a channel counts as far as its largest: d_c ≤ 10.

    TetherCache (arXiv 2606.13035) leaves such schedules to future work; the defaults of `near` and `far` are
    the 10th and 90th percentile of d in its first 45 s on the miniature.
    """

    class Options(ScheduleOptions):
        """Options of the drift distance."""

        low: float = Field(description="The value up to a distance of `near`; may be the larger one.")
        high: float = Field(description="The value from a distance of `far` on.")
        near: float = Field(default=0.13, ge=0, description="Distance up to which it is `low`.")
        far: float = Field(default=0.21, gt=0, description="Distance from which on it is `high`.")
        of: Literal["both", "keys", "values"] = Field(default="both", description="What is compared.")

        @model_validator(mode="after")
        def _far_is_farther(self) -> DriftDistance.Options:
            if self.far <= self.near:
                raise ValueError(f"'far' {self.far:g} is not above 'near' {self.near:g}")
            return self

    options: Options

    @property
    def bounds(self) -> tuple[float, float]:
        """Both values, the lesser one first."""
        low, high = self.options.low, self.options.high
        return min(low, high), max(low, high)

    def measure(self, newcomers: Newcomers) -> Tensor:
        """The value for each sample, float32 `[B]`."""
        options = self.options
        keys = distance(newcomers.keys, newcomers.trusted_keys)
        values = distance(newcomers.values, newcomers.trusted_values)
        d = {"keys": keys, "values": values, "both": (keys + values) / 2}[options.of]
        share = ((d - options.near) / (options.far - options.near)).clamp(0, 1)
        return options.low + (options.high - options.low) * share


def distance(own: Statistics, trusted: Statistics) -> Tensor:
    """The mean over newcomers, heads and channels of d_c, float32 `[B]`.

    Args:
        own: each newcomer's statistics, `[B, n, heads, head_dim]`.
        trusted: the pool's, `[B, heads, head_dim]`.
    """
    deviation = trusted.variance.sqrt()[:, None]
    moved = (own.mean - trusted.mean[:, None]).hypot(own.variance.sqrt() - deviation)
    return (moved / deviation.clamp_min(EPS)).clamp_max(FARTHEST).mean(dim=(1, 2, 3))


EPS = 1e-6
"""Smallest deviation that a distance is measured by."""
FARTHEST = 10.0
"""Largest distance of a channel: a few that never vary must not outweigh all others."""
