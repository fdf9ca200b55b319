"""What the figures need of a rollout, gathered while its frames stream past.

One rollout of 240 s serves every horizon: its first 5 s are the first window of all, and the last window of a
horizon are the 5 s that end there, for a policy does at 30 s of a long rollout what it does at the end of a
short one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.features import FEATURES, FrameFeatures
from tetherflow.evaluate.frechet import Moments

_AT_ONCE: Final = 16


@attrs.frozen
class WindowPlan:
    """Which frames of a video the figures look at.

    Attributes:
        horizons: in seconds, ascending.
        spans: first frame and end (exclusive) of each window: the first window, then the last window of each
            horizon, in order. Windows may overlap.
        fps: frames a second.
    """

    horizons: tuple[float, ...]
    spans: tuple[tuple[int, int], ...]
    fps: int

    @classmethod
    def of(
        cls, total_frames: int, horizons: Sequence[float], *, fps: int = 16, seconds: float = 5.0
    ) -> WindowPlan:
        """Plan the windows of a video.

        Args:
            total_frames: how many frames the video will hold.
            horizons: where the last windows end, in seconds. The last horizon may lie up to half a second
                past the end, which then counts as its end: N latent frames decode to 4N − 3 frames, so a
                "30-second" video of 120 holds 477 frames, not 480.
            fps: frames a second.
            seconds: length of a window.

        Raises:
            EvaluationError: no horizon; one past the end or shorter than a window; a window of one frame.
        """
        length = round(seconds * fps)
        if not horizons or length < 2:
            raise EvaluationError("drift needs at least one horizon and windows of at least two frames")
        spans = [(0, length)]
        for horizon in sorted(horizons):
            end = min(round(horizon * fps), total_frames)
            if round(horizon * fps) - end > fps // 2:
                raise EvaluationError(
                    f"the horizon of {horizon:g} s lies past the end of a video of {total_frames / fps:g} s"
                )
            if end < length:
                raise EvaluationError(
                    f"the horizon of {horizon:g} s ({end} frames) is shorter than a window of {seconds:g} s "
                    f"({length} frames)"
                )
            spans.append((end - length, end))
        return cls(tuple(sorted(horizons)), tuple(spans), fps)


@attrs.frozen(eq=False)
class WindowStatistics:
    """What is kept of P videos in W windows: enough for every figure and for resampling the videos.

    Attributes:
        plan: the windows; W is `len(plan.spans)`.
        features: moments of the frames' features, batch dimensions `[P, W]`.
        colour: float64 `[P, W, 3]`, mean red, green and blue, each 0 to 1.
        motion: float64 `[P, W]`, mean absolute difference of consecutive frames over pixels and colours, 0 to
            1; pairs that lie in the window whole.
    """

    plan: WindowPlan
    features: Moments
    colour: torch.Tensor
    motion: torch.Tensor

    @property
    def videos(self) -> int:
        """P, how many videos."""
        return len(self.colour)

    @classmethod
    def concatenate(cls, parts: Sequence[WindowStatistics]) -> WindowStatistics:
        """Statistics of the videos of all parts, in order.

        Raises:
            EvaluationError: no parts, or parts with different windows.
        """
        if not parts or any(part.plan != parts[0].plan for part in parts):
            raise EvaluationError("statistics can be joined only over the same windows")
        moments = [torch.cat([getattr(p.features, m) for p in parts]) for m in ("count", "total", "outer")]
        return cls(
            parts[0].plan,
            Moments(*moments),
            torch.cat([part.colour for part in parts]),
            torch.cat([part.motion for part in parts]),
        )

    def save(self, path: Path | str) -> None:
        """Write a safetensors file that `load` reads."""
        tensors = {
            "count": self.features.count,
            "total": self.features.total,
            "outer": self.features.outer,
            "colour": self.colour,
            "motion": self.motion,
        }
        save_file(tensors, path, metadata={"plan": json.dumps(attrs.asdict(self.plan))})

    @classmethod
    def load(cls, path: Path | str) -> WindowStatistics:
        """Read what `save` wrote.

        Raises:
            EvaluationError: there is no such file, or it is of another kind.
        """
        try:
            with safe_open(path, framework="pt") as file:
                plan = json.loads(file.metadata()["plan"])
                read = file.get_tensor
                return cls(
                    WindowPlan(tuple(plan["horizons"]), tuple(map(tuple, plan["spans"])), plan["fps"]),
                    Moments(read("count"), read("total"), read("outer")),
                    read("colour"),
                    read("motion"),
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{path} holds no window statistics: {error}") from error


class WindowRecorder:
    """Gathers statistics of a batch of videos as their frames come; memory does not grow with length."""

    def __init__(self, plan: WindowPlan, videos: int, features: FrameFeatures) -> None:
        """Start with no frames seen.

        Args:
            plan: the windows.
            videos: B, how many videos stream side by side.
            features: the feature space; one instance may serve many recorders.
        """
        self._plan = plan
        self._features = features
        self._seen = 0
        self._previous: torch.Tensor | None = None
        windows = len(plan.spans)
        self._moments = [Moments.zeros(videos, features=FEATURES) for _ in range(windows)]
        self._colour = torch.zeros(videos, windows, 3, dtype=torch.float64)
        self._motion = torch.zeros(videos, windows, dtype=torch.float64)

    def append(self, frames: torch.Tensor) -> None:
        """Take in the next frames of every video; frames outside all windows cost next to nothing.

        Args:
            frames: uint8 `[B, n, 3, H, W]`, RGB, on any device.

        Raises:
            EvaluationError: another dtype or shape.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or len(frames) != len(self._motion):
            wanted = f"uint8 [{len(self._motion)}, n, 3, H, W]"
            raise EvaluationError(f"frames must be {wanted}, not {frames.dtype} {list(frames.shape)}")
        for piece in torch.split(frames, _AT_ONCE, dim=1) if frames.shape[1] else ():
            self._take(piece)

    def skip_to(self, frame: int) -> None:
        """Go on with a later frame; those between lie outside all windows.

        Raises:
            EvaluationError: A window holds one of them.
        """
        if any(first < frame and self._seen < stop for first, stop in self._plan.spans):
            raise EvaluationError(f"frames {self._seen} to {frame - 1} are skipped, but a window holds some")
        self._seen, self._previous = frame, None

    def _take(self, frames: torch.Tensor) -> None:
        times = torch.arange(self._seen, self._seen + frames.shape[1])
        inside = [(times >= first) & (times < stop) for first, stop in self._plan.spans]
        if any(bool(mask.any()) for mask in inside):
            features = self._features(frames.flatten(0, 1)).view(*frames.shape[:2], -1)
            pixels = frames.float() / 255
            colour = pixels.mean(dim=(-2, -1)).double().cpu()
            previous = pixels[:, :1] if self._previous is None else self._previous.float() / 255
            steps = pixels - torch.cat([previous, pixels[:, :-1]], dim=1)
            motion = steps.abs().mean(dim=(-3, -2, -1)).double().cpu()
            for window, mask in enumerate(inside):
                self._moments[window] += Moments.of(features[:, mask])
                self._colour[:, window] += colour[:, mask].sum(dim=1)
                # The step into a window's first frame began outside it.
                within = mask & (times > self._plan.spans[window][0])
                self._motion[:, window] += motion[:, within].sum(dim=1)
        self._seen += frames.shape[1]
        self._previous = frames[:, -1:].clone()

    def finish(self) -> WindowStatistics:
        """Return the statistics.

        Raises:
            EvaluationError: the videos ended before the last window did.
        """
        end = max(stop for _, stop in self._plan.spans)
        if self._seen < end:
            raise EvaluationError(
                f"the videos ended after {self._seen} frames; the last window ends at {end}"
            )
        lengths = torch.tensor([stop - start for start, stop in self._plan.spans], dtype=torch.float64)
        moments = Moments(
            torch.stack([m.count for m in self._moments], dim=1),
            torch.stack([m.total for m in self._moments], dim=1),
            torch.stack([m.outer for m in self._moments], dim=1),
        )
        return WindowStatistics(
            self._plan, moments, self._colour / lengths[:, None], self._motion / (lengths - 1)
        )
