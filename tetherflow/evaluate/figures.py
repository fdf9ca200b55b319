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

from functools import cached_property
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


@attrs.frozen(eq=False)
class Judged:
    """A policy's videos, judged once for all its figures.

    Attributes:
        statistics: of the videos, one a prompt.
        reference: moments of the real frames' features of each prompt, batch dimension `[P]`, in the videos'
            order.
        resamples: how many bootstrap resamples.
        seed: of the resamples; the same for every policy that is to be compared.
    """

    statistics: WindowStatistics
    reference: Moments
    resamples: int = 1000
    seed: int = 0

    @cached_property
    def weights(self) -> torch.Tensor:
        """Rows of weights `[1 + R, P]`: first every video once, then the resamples."""
        videos = self.statistics.videos
        drawn = resampling_weights(videos, resamples=self.resamples, seed=self.seed)
        return torch.cat([torch.ones(1, videos, dtype=torch.float64), drawn])

    @cached_property
    def quality(self) -> torch.Tensor:
        """Fréchet distances `[1 + R, W]` of each resample and window to the real clips of the same prompts.

        Raises:
            EvaluationError: The reference is of other prompts.
        """
        if len(self.reference.count) != self.statistics.videos:
            raise EvaluationError(
                f"there are real clips of {len(self.reference.count)} prompts for {self.statistics.videos} "
                "videos; a video is judged against those of its own prompt"
            )
        real = self.reference.combine(self.weights[:, None])
        return frechet_distance(real.gaussian(), self.statistics.features.combine(self.weights).gaussian())

    @property
    def drift(self) -> torch.Tensor:
        """Quality of the window at each horizon less that of the first, `[1 + R, W - 1]`."""
        return self.quality[:, 1:] - self.quality[:, :1]


def drift_figures(judged: Judged) -> list[HorizonFigures]:
    """Compute the figures at every horizon.

    The intervals tell how the figures would vary with other prompts, and as many. A resample of the prompts
    takes videos and real clips of the same prompts: were the real clips to stay, the mix of colours that the
    prompts happen to ask for, which no policy decides, would be most of a figure and of its interval.

    Raises:
        EvaluationError: fewer than two videos, a reference of other prompts, or a figure is not finite.
    """
    statistics, quality = judged.statistics, judged.quality
    motion = judged.weights @ statistics.motion / statistics.videos
    figures = []
    for window, horizon in enumerate(statistics.plan.horizons, start=1):
        shift = (statistics.colour[:, window] - statistics.colour[:, 0]).abs().mean(dim=-1)
        figures.append(
            HorizonFigures(
                horizon=horizon,
                first=_estimate(quality[:, 0]),
                last=_estimate(quality[:, window]),
                drift=_estimate(judged.drift[:, window - 1]),
                colour_shift=_estimate(judged.weights @ shift / statistics.videos),
                motion_first=_estimate(motion[:, 0]),
                motion_last=_estimate(motion[:, window]),
                motion_kept=_estimate(motion[:, window] / motion[:, 0]),
            )
        )
    return figures


def drift_ratios(judged: Judged, baseline: Judged) -> list[Estimate]:
    """A policy's drift as a share of another's, at every horizon; 0.17 reads "falls to 17 %".

    Args:
        judged: of the policy.
        baseline: of the policy it is compared with, for the same prompts and seeds in the same order.

    Raises:
        EvaluationError: other windows or another number of videos, or a ratio is not finite.
    """
    own, base = judged.statistics, baseline.statistics
    if own.plan != base.plan or own.videos != base.videos:
        raise EvaluationError("drifts can be compared only over the same windows and prompts")
    return [_estimate(ratios) for ratios in (judged.drift / baseline.drift).T]


def _estimate(figure: torch.Tensor) -> Estimate:
    """An estimate from `[1 + R]` values, the first that of every video once."""
    return estimate(figure[0], figure[1:])
