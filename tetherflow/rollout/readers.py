"""Video and image files, read as the tensors that the rest of Tetherflow speaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import av
import torch
from av.container import InputContainer

from tetherflow.errors import VideoError

_TEXT: Final = frozenset({"tty", "bin", "adf", "idf", "xbin"})
"""Formats of text that FFmpeg draws as pictures."""


@contextmanager
def opened(path: Path | str) -> Iterator[InputContainer]:
    """Open a file that holds a video stream, and tell in words when it or its content cannot be read."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path} holds no video stream")
            if container.format.name in _TEXT:
                raise VideoError(f"{path} is text, not a video or an image")
            yield container
    except (OSError, av.FFmpegError) as error:
        raise VideoError(f"cannot read {path} as a video or an image: {error}") from error


def stream_video(path: Path | str, *, frames: int = 16) -> Iterator[torch.Tensor]:
    """Decode a video piece by piece, so that a long one needs no memory.

    Args:
        path: a video or an image file, in any format that FFmpeg reads.
        frames: how many frames a piece holds; the last may hold fewer.

    Yields:
        uint8 `[n, 3, H, W]`, RGB, `1 <= n <= frames`, every stored frame once, whatever its rate.

    Raises:
        VideoError: there is no such file, or it holds no picture that can be decoded.
    """
    held: list[torch.Tensor] = []
    seen = 0
    with opened(path) as container:
        for frame in container.decode(video=0):
            held.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
            seen += 1
            if len(held) == frames:
                yield torch.stack(held)
                held = []
    if held:
        yield torch.stack(held)
    if not seen:
        raise VideoError(f"{path} holds no frame that can be decoded")


def count_frames(path: Path | str) -> int:
    """Count the frames of a video without decoding them.

    Args:
        path: a video or an image file, in any format that FFmpeg reads.

    Raises:
        VideoError: there is no such file, or it holds no video stream.
    """
    with opened(path) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def read_frames(path: Path | str, indices: Iterable[int]) -> dict[int, torch.Tensor]:
    """Read single frames of a video.

    Args:
        path: a video or an image file, in any format that FFmpeg reads.
        indices: numbers of frames, from 0.

    Returns:
        uint8 `[3, H, W]`, RGB, by number; numbers past the end are left out.

    Raises:
        VideoError: there is no such file, or it cannot be decoded.
    """
    wanted = set(indices)
    last = max(wanted, default=-1)
    frames: dict[int, torch.Tensor] = {}
    with opened(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                frames[index] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            if index >= last:
                break
    return frames
