"""Drift figures on videos that drift as told."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from tests.evaluate.clips import blurred, clip, contrasted, pixels
from tetherflow.errors import EvaluationError
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.figures import HorizonFigures, drift_figures, drift_ratios, real_against_real
from tetherflow.evaluate.frechet import Moments
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
def clips() -> Moments:
    features = FrameFeatures()
    times = torch.arange(0, 16, 2) / 16
    return Moments.of(torch.stack([features(pixels(clip(seed, times))) for seed in range(1000, 1120)]))


@pytest.fixture(scope="module")
def measured(clips: Moments) -> dict[str, list[HorizonFigures]]:
    kinds = ("faithful", "blurred", "over-exposed", "brighter", "frozen")
    return {kind: drift_figures(statistics(kind), clips.union(), resamples=300) for kind in kinds}


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


def test_ratios_compare_drift_pairwise(clips: Moments) -> None:
    drifting, baseline = statistics("blurred"), statistics("over-exposed")
    reference = clips.union()
    ratio = drift_ratios(drifting, baseline, reference, resamples=300)[1]
    drifts = [drift_figures(s, reference, resamples=10)[1].drift.value for s in (drifting, baseline)]
    assert ratio.value == pytest.approx(drifts[0] / drifts[1])
    assert ratio.low < ratio.value < ratio.high
    same = drift_ratios(baseline, baseline, reference, resamples=10)[1]
    assert (same.low, same.value, same.high) == pytest.approx((1, 1, 1))
    with pytest.raises(EvaluationError, match="same windows"):
        drift_ratios(drifting, WindowStatistics.concatenate([baseline, baseline]), reference)


def test_figures_survive_json_and_repeat(clips: Moments, measured: dict[str, list[HorizonFigures]]) -> None:
    for figures in measured["blurred"]:
        assert HorizonFigures.from_dict(json.loads(json.dumps(figures.to_dict()))) == figures
    assert drift_figures(statistics("blurred"), clips.union(), resamples=300) == measured["blurred"]


def test_real_clips_set_the_floor(clips: Moments, measured: dict[str, list[HorizonFigures]]) -> None:
    floor = real_against_real(clips, VIDEOS)
    assert 0 < floor.low < floor.value < floor.high
    assert measured["faithful"][1].last.value < 2 * floor.high
    assert measured["blurred"][1].last.value > floor.high
    assert real_against_real(clips, 60).value < floor.value
    with pytest.raises(EvaluationError, match="others of 120"):
        real_against_real(clips, 120)
