"""Intervals hold what they promise."""

from __future__ import annotations

import pytest
import torch

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.bootstrap import Estimate, estimate, resampling_weights
from tetherflow.evaluate.frechet import Moments, frechet_distance


def test_draws_are_with_replacement_paired_and_repeatable() -> None:
    weights = resampling_weights(32)
    assert weights.shape == (1000, 32)
    assert bool((weights.sum(dim=1) == 32).all())
    assert weights.mean() == 1
    assert float((weights == 0).double().mean()) == pytest.approx((1 - 1 / 32) ** 32, abs=0.01)
    assert torch.equal(weights, resampling_weights(32))
    assert not torch.equal(weights, resampling_weights(32, seed=1))


def test_the_interval_of_a_mean_covers_the_truth_nineteen_times_in_twenty() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(300, 32, generator=generator, dtype=torch.float64).exp()
    truth = torch.tensor(0.5).exp()
    weights = resampling_weights(32) / 32
    intervals = [estimate(sample.mean(), weights @ sample) for sample in samples]
    covered = sum(interval.low <= truth <= interval.high for interval in intervals) / len(intervals)
    # The bootstrap falls short of 0.95 on 32 draws of so skewed a distribution; Student's interval does too.
    assert 0.85 < covered < 0.97
    assert all(interval.low < interval.value < interval.high for interval in intervals)


def test_the_interval_of_a_distance_covers_what_as_many_videos_show() -> None:
    """Coverage for a Fréchet distance, whose plain percentile interval lies above the figure itself."""
    generator = torch.Generator().manual_seed(1)

    def videos(count: int) -> torch.Tensor:
        """Features `[count, 20, 6]`: what a video looks like, and how its frames differ."""
        look = torch.randn(count, 1, 6, generator=generator)
        return 0.4 + look + 0.3 * torch.randn(count, 20, 6, generator=generator)

    reference = Moments.of((videos(500) - 0.4).flatten(0, 1)).gaussian()
    truth = frechet_distance(reference, Moments.of(videos(400 * 24).view(400, 480, 6)).gaussian()).mean()
    weights = torch.cat([torch.ones(1, 24, dtype=torch.float64), resampling_weights(24, resamples=300)])
    covered = plain = 0
    for _ in range(120):
        distances = frechet_distance(reference, Moments.of(videos(24)).combine(weights).gaussian())
        interval = estimate(distances[0], distances[1:])
        covered += bool(interval.low <= truth <= interval.high)
        plain += bool(distances[1:].quantile(0.025) <= truth <= distances[1:].quantile(0.975))
    assert covered >= 120 * 0.85
    assert covered > plain


def test_one_video_has_no_interval_and_no_figure_is_infinite() -> None:
    with pytest.raises(EvaluationError, match="more prompts"):
        resampling_weights(1)
    with pytest.raises(EvaluationError, match="finite"):
        estimate(torch.tensor(torch.inf, dtype=torch.float64), torch.zeros(10, dtype=torch.float64))


def test_an_estimate_prints_with_its_interval() -> None:
    assert f"{Estimate(0.12345, 0.1, 0.15)}" == "0.123 [0.100, 0.150]"
    assert f"{Estimate(0.12345, 0.1, 0.15):.1f}" == "0.1 [0.1, 0.1]"
