"""Whole videos, small enough to hold."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tetherflow.rollout.readers import stream_video


def read_video(path: Path | str) -> Tensor:
    """All frames of a video, uint8 `[n, 3, H, W]`; of an image, its one."""
    return torch.cat(list(stream_video(path)))
