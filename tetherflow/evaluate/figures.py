"""The drift figures of a policy over many prompts, each with a 95 % interval.

Definitions, for a set of videos and one horizon; "first" is their first 5 s, "last" the 5 s that end at the
horizon:

quality
    Fréchet distance between the features of all frames of the window and those of held-out real clips.
    Smaller is better; 0 is out of reach, since few videos never cover the distribution (see
    `real_against_real`).
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

    The intervals tell how the figures would vary with other prompts, and as many; the reference stays fixed.

    Args:
        statistics: of the videos of a policy, one or more per prompt.
        reference: moments of the real frames' features, no batch dimension.
        resamples: how many bootstrap resamples.
        seed: of the resamples; the same for every policy that is to be compared.

    Raises:
        EvaluationError: fewer than two videos, or a figure is not finite.
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
        reference: moments of the real frames' features, no batch dimension.
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


def real_against_real(clips: Moments, videos: int, *, resamples: int = 200, seed: int = 0) -> Estimate:
    """The quality that real clips would score: what a perfect model cannot be told from.

    Args:
        clips: moments of K real clips, batch dimension `[K]`; each as long as a window.
        videos: how many clips are held against the others; as many as the policies have videos.
        resamples: how many random splits.
        seed: of the splits.

    Returns:
        Mean, 2.5 % and 97.5 % quantile of the distance between `videos` clips and the others.

    Raises:
        EvaluationError: no more than `videos` clips.
    """
    count = len(clips.count)
    if not 0 < videos < count:
        raise EvaluationError(f"{videos} real clips cannot be held against the others of {count}")
    order = torch.rand(resamples, count, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    held = torch.zeros(resamples, count, dtype=torch.float64).scatter_(1, order[:, :videos], 1.0)
    distances = frechet_distance(clips.combine(1 - held).gaussian(), clips.combine(held).gaussian())
    low, high = torch.quantile(distances, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(distances.mean()), low, high)


def _weights(videos: int, resamples: int, seed: int) -> torch.Tensor:
    """Rows of weights `[1 + R, P]`: first every video once, then the resamples."""
    drawn = resampling_weights(videos, resamples=resamples, seed=seed)
    return torch.cat([torch.ones(1, videos, dtype=torch.float64), drawn])


def _estimate(figure: torch.Tensor) -> Estimate:
    """An estimate from `[1 + R]` values in the order of `_weights`."""
    return estimate(figure[0], figure[1:])


def _quality(statistics: WindowStatistics, reference: Moments, weights: torch.Tensor) -> torch.Tensor:
    """Fréchet distances `[1 + R, W]` of each resample and window to the reference."""
    sets = statistics.features.combine(weights)
    return frechet_distance(reference.gaussian(), sets.gaussian())
