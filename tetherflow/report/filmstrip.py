"""A picture of several videos at the same moments: one row a policy, one column a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont

from tetherflow.errors import EvaluationError
from tetherflow.rollout.readers import read_frames

_GAP: Final = 6
_INK: Final = (40, 40, 40)
_PAPER: Final = (255, 255, 255)
_BLANK: Final = (235, 235, 235)


def frames_at(path: Path | str, seconds: Sequence[float], *, fps: int = 16) -> list[torch.Tensor | None]:
    """Take the frames of a video at given times.

    Args:
        path: the video.
        seconds: the times, in any order.
        fps: its frames a second.

    Returns:
        A frame per time, uint8 `[3, H, W]`; None where the video had ended more than half a second before. A
        time within that half second takes the last frame, for a video of 240 s ends a few frames early.

    Raises:
        VideoError: the file cannot be read.
    """
    frames = read_frames(path, [i for s in seconds for i in _tolerated(s, fps)])
    picked = []
    for moment in seconds:
        there = [frames[i] for i in _tolerated(moment, fps) if i in frames]
        picked.append(there[-1] if there else None)
    return picked


def _tolerated(moment: float, fps: int) -> range:
    """Indices of the frames that may stand for a moment, the best one last."""
    last = round(moment * fps)
    return range(max(0, last - fps // 2), last + 1)


def filmstrip(
    rows: Mapping[str, Sequence[torch.Tensor | None]], columns: Sequence[str], *, cell: int = 160
) -> Image.Image:
    """Draw the grid.

    Args:
        rows: frames by the row's label, uint8 `[3, H, W]` each, one a column; None leaves a grey cell.
        columns: the columns' labels, such as "5 s".
        cell: width of a cell in pixels; its height follows from the first frame's proportions.

    Returns:
        An RGB image; `image.save("strip.png")` writes it.

    Raises:
        EvaluationError: no frame at all, or a row with more or fewer frames than columns.
    """
    given = [frame for frames in rows.values() for frame in frames if frame is not None]
    if not given or any(len(frames) != len(columns) for frames in rows.values()):
        raise EvaluationError("a filmstrip needs a frame, and a cell per column in every row")
    height = round(cell * given[0].shape[1] / given[0].shape[2])
    points = max(12, cell // 11)
    font = ImageFont.load_default(size=points)
    line = round(points * 1.5)
    margin = round(max(font.getlength(label) for label in rows)) + 2 * _GAP
    size = (margin + len(columns) * (cell + _GAP), line + len(rows) * (height + _GAP))
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    for x, label in enumerate(columns):
        draw.text((margin + x * (cell + _GAP) + cell / 2, line / 2), label, _INK, font, anchor="mm")
    for y, (label, frames) in enumerate(rows.items()):
        top = line + y * (height + _GAP)
        draw.text((margin - _GAP, top + height / 2), label, _INK, font, anchor="rm")
        for x, frame in enumerate(frames):
            left = margin + x * (cell + _GAP)
            if frame is None:
                draw.rectangle((left, top, left + cell - 1, top + height - 1), fill=_BLANK)
            else:
                image.paste(_picture(frame, cell, height), (left, top))
    return image


def _picture(frame: torch.Tensor, width: int, height: int) -> Image.Image:
    pixels = frame.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
