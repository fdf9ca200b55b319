"""Drift of one video, for when there is only one: a figure for a demonstration, not for a comparison."""

from __future__ import annotations

from pathlib import Path

import attrs

from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.windows import WindowPlan, WindowRecorder, WindowStatistics
from tetherflow.rollout.readers import count_frames, stream_video


@attrs.frozen
class VideoDrift:
    """How far the end of one video is from its beginning.

    Attributes:
        drift: squared distance between the mean features of the last window and the first, averaged over
            the features; the first term of the Fréchet distance, in the same space and unit as the figures
            over many prompts, with the video's own beginning for a reference.
        colour_shift: mean over red, green, blue of |mean colour of the last window − that of the first|,
            0 to 1.
        motion_kept: motion in the last window over motion in the first; 0 where the first has none.
    """

    drift: float
    colour_shift: float
    motion_kept: float


def video_drift(statistics: WindowStatistics, video: int = 0) -> VideoDrift:
    """State the drift of one video.

    What it cannot do: it asks whether the video still looks as it began, not whether it looks real. A
    faithful video scores a little above 0, since its objects move and hide one another, and a frozen one
    scores near 0 (see `motion_kept`). Two videos that differ by a factor of two or three may do so by
    chance. The covariances are left out because 5 s of one video say little of them.

    Args:
        statistics: of at least one video; its last horizon counts.
        video: which of the videos.
    """
    first, last = statistics.features[video, 0].mean(), statistics.features[video, -1].mean()
    start, end = statistics.motion[video, 0], statistics.motion[video, -1]
    return VideoDrift(
        drift=float((last - first).square().sum()),
        colour_shift=float((statistics.colour[video, -1] - statistics.colour[video, 0]).abs().mean()),
        motion_kept=float(end / start) if start > 0 else 0.0,
    )


def file_drift(path: Path | str, *, fps: int = 16, seconds: float = 5.0) -> VideoDrift:
    """State the drift of a video file, from its first seconds to its last.

    Args:
        path: the video.
        fps: its frames a second.
        seconds: length of the two windows.

    Raises:
        VideoError: the file cannot be read.
        EvaluationError: it is shorter than a window.
    """
    total = count_frames(path)
    plan = WindowPlan.of(total, [total / fps], fps=fps, seconds=seconds)
    recorder = WindowRecorder(plan, 1, FrameFeatures())
    for frames in stream_video(path):
        recorder.append(frames[None])
    return video_drift(recorder.finish())
