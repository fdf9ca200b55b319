"""A video or an image as it is meant to be seen: the right way up, at a given frame rate."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from av import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from tetherflow.errors import VideoError
from tetherflow.rollout.readers import opened


@attrs.frozen
class Clip:
    """A video or an image, resampled by time.

    Attributes:
        path: its file.
        shown: for each frame at the wanted rate, the number of the stored frame that is shown then.
    """

    path: Path
    shown: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, fps: int) -> Clip:
        """Look through a file, holding none of its frames.

        Args:
            path: a video or an image file, in any format that FFmpeg reads.
            fps: wanted frames a second.

        Raises:
            VideoError: There is no such file, or it holds no picture that can be decoded.
        """
        times, end = _times(path, fps)
        return cls(path, tuple(nearest(times, end, fps)))

    def __len__(self) -> int:
        """Frames at the wanted rate."""
        return len(self.shown)

    def frames(self, begin: int = 0) -> Iterator[Tensor]:
        """Decode the clip, one frame at a time, so that a long one needs no memory.

        Args:
            begin: the first frame to yield, from 0, at the wanted rate.

        Yields:
            uint8 `[3, H, W]`, RGB.

        Raises:
            VideoError: The file cannot be decoded.
        """
        shown = self.shown[begin:]
        done, exif = 0, _exif(self.path)
        with opened(self.path) as container:
            container.streams.video[0].thread_type = "AUTO"
            for index, stored in enumerate(container.decode(video=0)):
                if done == len(shown):
                    break
                if shown[done] != index:
                    continue
                frame = torch.from_numpy(_upright(stored, exif)).permute(2, 0, 1)
                while done < len(shown) and shown[done] == index:
                    yield frame
                    done += 1


def nearest(times: Sequence[Fraction], end: Fraction, fps: int) -> list[int]:
    """Which stored frame is shown at each frame of another rate: the nearest in time, of two the earlier.

    Args:
        times: when each stored frame is shown, in seconds, ascending from 0; at least one.
        end: when the last one ends.
        fps: wanted frames a second.

    Returns:
        Numbers of stored frames, ascending: as many as the clip has wanted frames, rounded, and one for a
        still picture.
    """
    if len(times) == 1:
        return [0]
    numbers = []
    for moment in (Fraction(frame, fps) for frame in range(max(1, round(end * fps)))):
        after = min(bisect_left(times, moment), len(times) - 1)
        before = max(after - 1, 0)
        numbers.append(before if moment - times[before] <= times[after] - moment else after)
    return numbers


def _times(path: Path, fps: int) -> tuple[list[Fraction], Fraction]:
    """When each frame of a file is shown, in seconds from the first, and when the last one ends.

    Decoded frames tell it, as containers may say otherwise. A frame that has no time, or one that is not
    after the frame's before, follows that frame when it ends.
    """
    times: list[Fraction] = []
    start = end = Fraction(0)
    with opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        usual = 1 / Fraction(stream.average_rate or fps)
        for frame in container.decode(video=0):
            tick = Fraction(frame.time_base or 0)
            stamp = None if frame.pts is None else frame.pts * tick
            if not times:
                start = stamp or Fraction(0)
            time = end if stamp is None else stamp - start
            if times and time <= times[-1]:
                time = end
            times.append(time)
            end = time + (frame.duration * tick or usual)
    if not times:
        raise VideoError(f"{path} holds no frame that can be decoded")
    return times, end


def _exif(path: Path) -> bytes | None:
    """An image's EXIF data, which say how its camera was held; None for a video."""
    try:
        with Image.open(path) as image:
            return image.getexif().tobytes()
    except (OSError, Image.DecompressionBombError):  # an unknown format is an OSError, too
        return None


def _upright(frame: VideoFrame, exif: bytes | None) -> NDArray[Any]:
    """RGB pixels, uint8 `[H, W, 3]`, turned as an image's EXIF data or a video's display matrix say."""
    pixels = frame.to_ndarray(format="rgb24")
    if exif is None:
        return np.rot90(pixels, round(frame.rotation / 90)).copy()
    # The pixels are FFmpeg's for images, too: Pillow would clip one of 16 bits.
    image = Image.fromarray(pixels)
    image.info["exif"] = exif
    return np.array(ImageOps.exif_transpose(image))
