"""The drift figures of a policy over many prompts, each with a 95 % interval.

Definitions, for a set of videos and one horizon; "first" is their first 5 s, "last" the 5 s that end at the
horizon:

quality
    Fréchet distance between the features of all frames of the window and those of held-out real clips of the
    same prompts, as many of each prompt as of any other. Smaller is better; 0 is out of reach, since few
    videos never cover the distribution (see `Reference.against_itself`).
drift
    Quality of the last window less that of the first.
colour shift
    Mean over videos and over red, green, blue of |mean colour of the last window − that of the first|, the
    colours from 0 to 1.
motion
    Mean over videos of the mean absolute difference of consecutive frames, 0 to 1.
motion kept
    Motion of the last windows over motion of the first: 1 keeps it, 0 freezes, more is jitter.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.bootstrap import Estimate, estimate, resampling_weights
from tetherflow.evaluate.frechet import Moments, frechet_distance
from tetherflow.evaluate.windows import WindowStatistics


@attrs.frozen
class HorizonFigures:
    """Figures at one horizon; the module's text defines them.

    Attributes:
        horizon: where the last window ends, in seconds.
        first: quality of the first window.
        last: quality of the last window.
        drift: `last - first`.
        colour_shift: 0 to 1.
        motion_first: 0 to 1.
        motion_last: 0 to 1.
        motion_kept: ratio.
    """

    horizon: float
    first: Estimate
    last: Estimate
    drift: Estimate
    colour_shift: Estimate
    motion_first: Estimate
    motion_last: Estimate
    motion_kept: Estimate

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HorizonFigures:
        """Read what `to_dict` gave."""
        estimates = {name: Estimate.from_dict(data[name]) for name in data if name != "horizon"}
        return cls(horizon=data["horizon"], **estimates)


def drift_figures(
    statistics: WindowStatistics, reference: Moments, *, resamples: int = 1000, seed: int = 0
) -> list[HorizonFigures]:
    """Compute the figures at every horizon.

    The intervals tell how the figures would vary with other prompts, and as many. A resample of the prompts
    takes videos and real clips of the same prompts: were the real clips to stay, the mix of colours that the
    prompts happen to ask for, which no policy decides, would be most of a figure and of its interval.

    Args:
        statistics: of the videos of a policy, one a prompt.
        reference: moments of the real frames' features of each prompt, batch dimension `[P]`, in the videos'
            order.
        resamples: how many bootstrap resamples.
        seed: of the resamples; the same for every policy that is to be compared.

    Raises:
        EvaluationError: fewer than two videos, a reference of other prompts, or a figure is not finite.
    """
    weights = _weights(statistics.videos, resamples, seed)
    quality = _quality(statistics, reference, weights)
    motion = weights @ statistics.motion / statistics.videos
    figures = []
    for window, horizon in enumerate(statistics.plan.horizons, start=1):
        shift = (statistics.colour[:, window] - statistics.colour[:, 0]).abs().mean(dim=-1)
        figures.append(
            HorizonFigures(
                horizon=horizon,
                first=_estimate(quality[:, 0]),
                last=_estimate(quality[:, window]),
                drift=_estimate(quality[:, window] - quality[:, 0]),
                colour_shift=_estimate(weights @ shift / statistics.videos),
                motion_first=_estimate(motion[:, 0]),
                motion_last=_estimate(motion[:, window]),
                motion_kept=_estimate(motion[:, window] / motion[:, 0]),
            )
        )
    return figures


def drift_ratios(
    statistics: WindowStatistics,
    baseline: WindowStatistics,
    reference: Moments,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Estimate]:
    """A policy's drift as a share of another's, at every horizon; 0.17 reads "falls to 17 %".

    Args:
        statistics: of the policy.
        baseline: of the policy it is compared with, for the same prompts and seeds in the same order.
        reference: moments of the real frames' features of each prompt, batch dimension `[P]`.
        resamples: how many bootstrap resamples; the prompts are drawn alike for both.
        seed: of the resamples.

    Raises:
        EvaluationError: other windows or another number of videos, or a ratio is not finite.
    """
    if statistics.plan != baseline.plan or statistics.videos != baseline.videos:
        raise EvaluationError("drifts can be compared only over the same windows and prompts")
    weights = _weights(statistics.videos, resamples, seed)
    drifts = [
        quality[:, 1:] - quality[:, :1]
        for quality in (_quality(s, reference, weights) for s in (statistics, baseline))
    ]
    return [_estimate(ratios) for ratios in (drifts[0] / drifts[1]).T]


def _weights(videos: int, resamples: int, seed: int) -> torch.Tensor:
    """Rows of weights `[1 + R, P]`: first every video once, then the resamples."""
    drawn = resampling_weights(videos, resamples=resamples, seed=seed)
    return torch.cat([torch.ones(1, videos, dtype=torch.float64), drawn])


def _estimate(figure: torch.Tensor) -> Estimate:
    """An estimate from `[1 + R]` values in the order of `_weights`."""
    return estimate(figure[0], figure[1:])


def _quality(statistics: WindowStatistics, reference: Moments, weights: torch.Tensor) -> torch.Tensor:
    """Fréchet distances `[1 + R, W]` of each resample and window to the real clips of the same prompts."""
    if len(reference.count) != statistics.videos:
        raise EvaluationError(
            f"there are real clips of {len(reference.count)} prompts for {statistics.videos} videos; "
            f"a video is judged against those of its own prompt"
        )
    real = reference.combine(weights[:, None])
    return frechet_distance(real.gaussian(), statistics.features.combine(weights).gaussian())
