"""The drift of one video."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.evaluate.clips import blurred, clip, contrasted, pixels
from tetherflow.errors import EvaluationError
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.single import VideoDrift, file_drift, video_drift
from tetherflow.evaluate.windows import WindowPlan, WindowRecorder
from tetherflow.rollout.writers import VideoWriter


def drift(first: torch.Tensor, last: torch.Tensor) -> VideoDrift:
    plan = WindowPlan.of(len(first) + len(last), [(len(first) + len(last)) / 16])
    recorder = WindowRecorder(plan, 1, FrameFeatures())
    for frames in (first, last):
        recorder.append(pixels(frames)[None])
    return video_drift(recorder.finish())


@pytest.mark.parametrize("seed", range(6))
def test_a_video_that_degrades_scores_far_above_one_that_does_not(seed: int) -> None:
    first, last = clip(seed, torch.arange(80) / 16), clip(seed, 25 + torch.arange(80) / 16)
    faithful = drift(first, last)
    for bad in (contrasted(last, 2.5), blurred(last, 6), (last + 0.35).clamp(0, 1)):
        assert drift(first, bad).drift > 2 * faithful.drift
    assert drift(first, first).drift == 0
    assert drift(first, last[:1].expand_as(last)).motion_kept == 0
    assert faithful.motion_kept > 0.3


def test_a_file_scores_as_its_frames_do(tmp_path: Path) -> None:
    first, last = clip(3, torch.arange(80) / 16), contrasted(clip(3, 5 + torch.arange(80) / 16), 2)
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.append(pixels(torch.cat([first, last])))
    streamed, read = drift(first, last), file_drift(tmp_path / "clip.mp4")
    assert read.drift == pytest.approx(streamed.drift, rel=0.2)
    assert read.colour_shift == pytest.approx(streamed.colour_shift, abs=0.01)
    with pytest.raises(EvaluationError, match="shorter than a window"):
        file_drift(tmp_path / "clip.mp4", seconds=11)
