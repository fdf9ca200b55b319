"""Windows of streamed videos."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch

from tests.evaluate.clips import clip, pixels
from tetherflow.errors import EvaluationError
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.frechet import Moments
from tetherflow.evaluate.windows import WindowPlan, WindowRecorder, WindowStatistics

PLAN = WindowPlan.of(61, [2, 3.9], fps=16, seconds=1.25)


def videos() -> torch.Tensor:
    """uint8 `[2, 61, 3, 64, 64]`."""
    times = torch.arange(61) / 16
    return torch.stack([pixels(clip(seed, times)) for seed in (1, 2)])


def record(frames: torch.Tensor, pieces: list[int], plan: WindowPlan = PLAN) -> WindowStatistics:
    recorder = WindowRecorder(plan, len(frames), FrameFeatures())
    for piece in torch.split(frames, pieces, dim=1):
        recorder.append(piece)
    return recorder.finish()


def assert_equal(a: WindowStatistics, b: WindowStatistics, tolerance: float = 1e-6) -> None:
    assert a.plan == b.plan
    for one, other in (
        (a.features.count, b.features.count),
        (a.features.total, b.features.total),
        (a.features.outer, b.features.outer),
        (a.colour, b.colour),
        (a.motion, b.motion),
    ):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_the_windows_of_a_rollout_of_960_latent_frames() -> None:
    plan = WindowPlan.of(1 + 4 * 959, [240, 30, 60])
    assert plan.horizons == (30.0, 60.0, 240.0)
    assert plan.spans == ((0, 80), (400, 480), (880, 960), (3757, 3837))


@pytest.mark.parametrize(
    ("total", "horizons", "message"),
    [(477, [31], "past the end"), (477, [4], "shorter than a window"), (477, [], "at least one horizon")],
)
def test_horizons_that_do_not_fit_are_told(total: int, horizons: list[float], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        WindowPlan.of(total, horizons)


def test_streaming_equals_at_once() -> None:
    frames = videos()
    whole = record(frames, [61])
    assert_equal(whole, record(frames, [9, 12, 12, 12, 12, 4]))
    assert_equal(whole, record(frames, [1] * 61))
    assert_equal(whole, record(frames, [0, 20, 0, 41]))


def test_statistics_are_what_they_say() -> None:
    frames = videos()
    statistics = record(frames, [9, 12, 12, 12, 12, 4])
    assert PLAN.spans == ((0, 20), (12, 32), (41, 61))
    features = FrameFeatures()
    for video in range(2):
        for window, (start, stop) in enumerate(PLAN.spans):
            part = frames[video, start:stop]
            moments = Moments.of(features(part))
            torch.testing.assert_close(statistics.features[video, window].outer, moments.outer)
            colour = part.double().mean(dim=(0, 2, 3)) / 255
            torch.testing.assert_close(statistics.colour[video, window], colour, rtol=1e-5, atol=1e-6)
            motion = part.double().diff(dim=0).abs().mean() / 255
            torch.testing.assert_close(statistics.motion[video, window], motion, rtol=1e-5, atol=1e-6)


def test_a_batch_equals_its_videos_alone() -> None:
    frames = videos()
    alone = [record(frames[video : video + 1], [30, 31]) for video in range(2)]
    assert_equal(record(frames, [30, 31]), WindowStatistics.concatenate(alone))


def test_frames_outside_the_windows_do_not_count() -> None:
    frames = videos()
    noisy = frames.clone()
    noisy[:, 32:41] = torch.randint(256, noisy[:, 32:41].shape, dtype=torch.uint8)
    assert_equal(record(frames, [61]), record(noisy, [61]))


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    statistics = record(videos(), [61])
    statistics.save(tmp_path / "statistics.safetensors")
    assert_equal(statistics, WindowStatistics.load(tmp_path / "statistics.safetensors"), 0)


def test_other_files_and_other_windows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("{}")
    for name in ("other", "missing"):
        with pytest.raises(EvaluationError, match=name):
            WindowStatistics.load(tmp_path / name)
    statistics = record(videos(), [61])
    other = attrs.evolve(statistics, plan=WindowPlan.of(61, [2, 3.8], fps=16, seconds=1.25))
    for parts in ([], [statistics, other]):
        with pytest.raises(EvaluationError, match="same windows"):
            WindowStatistics.concatenate(parts)


def test_a_rollout_that_ends_early_is_told() -> None:
    with pytest.raises(EvaluationError, match="after 60 frames"):
        record(videos()[:, :60], [60])


def test_frames_of_another_batch_are_refused() -> None:
    recorder = WindowRecorder(PLAN, 2, FrameFeatures())
    with pytest.raises(EvaluationError, match=r"uint8 \[2"):
        recorder.append(torch.zeros(3, 4, 3, 8, 8, dtype=torch.uint8))
