"""Drift figures on videos that drift as told."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from tests.evaluate.clips import blurred, clip, contrasted, pixels
from tetherflow.errors import EvaluationError
from tetherflow.evaluate.bootstrap import resampling_weights
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.figures import HorizonFigures, Judged, drift_figures, drift_ratios
from tetherflow.evaluate.frechet import Moments, frechet_distance
from tetherflow.evaluate.reference import Reference
from tetherflow.evaluate.windows import WindowPlan, WindowRecorder, WindowStatistics

PLAN = WindowPlan.of(96, [3, 6], fps=16, seconds=1)
VIDEOS = 24


@functools.cache
def statistics(kind: str) -> WindowStatistics:
    """Of videos that stay faithful for 3 s, and do what `kind` says in their last second."""
    features = FrameFeatures()
    parts = []
    for seed in range(VIDEOS):
        video = clip(seed, torch.arange(96) / 16)
        last = video[80:]
        match kind:
            case "faithful":
                pass
            case "blurred":
                last = blurred(last, 3)
            case "over-exposed":
                last = contrasted(last, 2.5)
            case "brighter":
                last = last * 0.6 + 0.4
            case "frozen":
                last = last[:1].expand_as(last)
        recorder = WindowRecorder(PLAN, 1, features)
        recorder.append(pixels(torch.cat([video[:80], last]))[None])
        parts.append(recorder.finish())
    return WindowStatistics.concatenate(parts)


@pytest.fixture(scope="module")
def real() -> Reference:
    """Eight clips of each video's scene, moving otherwise."""
    features = FrameFeatures()
    times = torch.arange(0, 16, 2) / 16
    clips = [
        features(pixels(clip(seed, times, motion=motion))) for seed in range(VIDEOS) for motion in range(8)
    ]
    return Reference(Moments.of(torch.stack(clips)), each=8)


@pytest.fixture(scope="module")
def measured(real: Reference) -> dict[str, list[HorizonFigures]]:
    kinds = ("faithful", "blurred", "over-exposed", "brighter", "frozen")
    return {kind: drift_figures(Judged(statistics(kind), real.prompts, resamples=300)) for kind in kinds}


def test_a_faithful_video_does_not_drift(measured: dict[str, list[HorizonFigures]]) -> None:
    for figures in measured["faithful"]:
        assert figures.drift.low < 0 < figures.drift.high
        assert figures.motion_kept.low < 1 < figures.motion_kept.high
        assert figures.colour_shift.value < 0.02


@pytest.mark.parametrize("kind", ["blurred", "over-exposed", "brighter"])
def test_drift_is_seen_where_it_is_and_only_there(
    measured: dict[str, list[HorizonFigures]], kind: str
) -> None:
    early, late = measured[kind]
    assert (early.horizon, late.horizon) == (3, 6)
    assert early == measured["faithful"][0]
    assert late.drift.low > 0
    assert late.drift.value == pytest.approx(late.last.value - late.first.value)


def test_colour_shift_and_motion_are_what_they_say(measured: dict[str, list[HorizonFigures]]) -> None:
    still = measured["frozen"][1]
    assert still.motion_last.value == 0
    assert still.motion_kept.value == 0
    bright, faithful = measured["brighter"][1], measured["faithful"][1]
    # x becomes 0.6 x + 0.4: a shift of 0.4 (1 - x), x about a half.
    assert 0.15 < bright.colour_shift.low < bright.colour_shift.high < 0.25
    assert bright.motion_last.value == pytest.approx(0.6 * faithful.motion_last.value, rel=0.02)


def test_ratios_compare_drift_pairwise(real: Reference) -> None:
    drifting, baseline = statistics("blurred"), statistics("over-exposed")
    reference = real.prompts
    judged = [Judged(each, reference, resamples=300) for each in (drifting, baseline)]
    ratio = drift_ratios(*judged)[1]
    drifts = [drift_figures(each)[1].drift.value for each in judged]
    assert ratio.value == pytest.approx(drifts[0] / drifts[1])
    assert ratio.low < ratio.value < ratio.high
    same = drift_ratios(judged[1], judged[1])[1]
    assert (same.low, same.value, same.high) == pytest.approx((1, 1, 1))
    with pytest.raises(EvaluationError, match="same windows"):
        drift_ratios(judged[0], Judged(WindowStatistics.concatenate([baseline, baseline]), reference))


def test_figures_survive_json_and_repeat(real: Reference, measured: dict[str, list[HorizonFigures]]) -> None:
    for figures in measured["blurred"]:
        assert HorizonFigures.from_dict(json.loads(json.dumps(figures.to_dict()))) == figures
    assert drift_figures(Judged(statistics("blurred"), real.prompts, resamples=300)) == measured["blurred"]


def test_real_clips_set_the_floor(real: Reference, measured: dict[str, list[HorizonFigures]]) -> None:
    floor = real.against_itself()
    assert 0 < floor.low < floor.value < floor.high
    assert measured["faithful"][1].last.value < 2 * floor.high
    assert measured["blurred"][1].last.value > floor.high


def test_the_mix_of_prompts_cancels(real: Reference, measured: dict[str, list[HorizonFigures]]) -> None:
    """Against the clips of all prompts alike, the same videos have wider intervals."""
    total = real.prompts.combine(torch.ones(VIDEOS, VIDEOS))
    common = drift_figures(Judged(statistics("faithful"), total, resamples=300))[1]
    matched = measured["faithful"][1]
    assert matched.first.value == pytest.approx(common.first.value, rel=1e-3)
    for figure in ("first", "last"):
        wide, narrow = getattr(common, figure), getattr(matched, figure)
        assert narrow.high - narrow.low < 0.75 * (wide.high - wide.low)


def test_a_resample_takes_videos_and_clips_of_the_same_prompts(real: Reference) -> None:
    """Against sets of vectors that are joined as often as a prompt was drawn."""
    features = FrameFeatures()
    drawn = resampling_weights(VIDEOS, resamples=1, seed=5)
    videos, clips = [], []
    for seed, times in enumerate(drawn[0].int().tolist()):
        video = features(pixels(clip(seed, torch.arange(96) / 16)))[:16]
        frames = torch.arange(0, 16, 2) / 16
        shown = [features(pixels(clip(seed, frames, motion=motion))) for motion in range(8)]
        videos += [video] * times
        clips += shown * times
    plain = frechet_distance(*(Moments.of(torch.cat(vectors)).gaussian() for vectors in (clips, videos)))
    own = Judged(statistics("faithful"), real.prompts, resamples=1, seed=5)
    torch.testing.assert_close(own.quality[1, 0], plain)


def test_a_reference_of_other_prompts_is_refused(real: Reference) -> None:
    with pytest.raises(EvaluationError, match="real clips of 23 prompts for 24 videos"):
        drift_figures(Judged(statistics("faithful"), real.prompts[:-1]))
