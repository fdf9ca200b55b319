"""The video or image that a rollout continues, as latents."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from tetherflow.backbone import Backbone
from tetherflow.errors import RecipeError
from tetherflow.recipe.parts import LATENT_STRIDE
from tetherflow.rollout.clip import Clip

_AT_ONCE: Final = 3 * LATENT_STRIDE
"""Video frames that are encoded at once."""


def first_latents(path: Path, backbone: Backbone, latent_frames: int, device: torch.device) -> Tensor:
    """Encode what a rollout begins with.

    The picture is scaled and cropped to the backbone's size, and a video resampled to its frame rate. Of
    these frames up to three are lost at the start, so that the rest fills whole latent frames: 1 + 4 (F - 1)
    video frames. It is read and encoded piece by piece, so that a long one needs no memory.

    Args:
        path: a video or an image.
        backbone: encodes it.
        latent_frames: length of the rollout, which must be longer.
        device: where the latents go.

    Returns:
        Latents `[1, F, C, H, W]`, float32.

    Raises:
        VideoError: The file cannot be read.
        RecipeError: It leaves nothing to generate.
    """
    clip = Clip.of(path, backbone.fps)
    count = 1 + (len(clip) - 1) // LATENT_STRIDE
    if count >= latent_frames:
        raise RecipeError(
            f"rollout.first_frames: {path} holds {count} latent frames and the rollout {latent_frames}, "
            "so nothing is left to generate; make the rollout longer"
        )
    height, width = _frame_size(backbone, device)
    frames = clip.frames((len(clip) - 1) % LATENT_STRIDE)
    encoder = backbone.encoder()
    pieces = _pieces(_fit(frame, height, width) for frame in frames)
    return torch.cat([encoder(piece[None].to(device)).float() for piece in pieces], dim=1)


def _frame_size(backbone: Backbone, device: torch.device) -> tuple[int, int]:
    """Height and width of the backbone's video frames: what it decodes one latent frame to."""
    latents = torch.zeros(1, 1, *backbone.latent_shape, device=device)
    height, width = backbone.decoder()(latents).shape[-2:]
    return height, width


def _pieces(frames: Iterator[Tensor]) -> Iterator[Tensor]:
    """Frames as an encoder takes them, `[n, 3, h, w]`: n is 1 + 4k in the first piece and 4k later."""
    size = 1 + _AT_ONCE
    while piece := list(islice(frames, size)):
        yield torch.stack(piece)
        size = _AT_ONCE


def _fit(frame: Tensor, height: int, width: int) -> Tensor:
    """Scale uint8 `[3, h, w]` to cover a size, and crop what juts out evenly."""
    rows, columns = frame.shape[1:]
    scale = max(height / rows, width / columns)
    size = (max(height, round(rows * scale)), max(width, round(columns * scale)))
    scaled = functional.interpolate(frame[None].float(), size=size, mode="bilinear", antialias=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)
