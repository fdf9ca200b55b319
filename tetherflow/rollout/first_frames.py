"""The video or image that a rollout continues, as latents."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tetherflow.backbone import Backbone
from tetherflow.errors import RecipeError
from tetherflow.recipe.parts import LATENT_STRIDE
from tetherflow.rollout.readers import read_video


def first_latents(path: Path, backbone: Backbone, latent_frames: int, device: torch.device) -> Tensor:
    """Encode what a rollout begins with.

    The picture is scaled and cropped to the backbone's size. A video loses up to three frames at its start,
    so that the rest fills whole latent frames: 1 + 4 (F - 1) video frames.

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
    frames = read_video(path)
    frames = frames[(len(frames) - 1) % LATENT_STRIDE :]
    count = 1 + (len(frames) - 1) // LATENT_STRIDE
    if count >= latent_frames:
        raise RecipeError(
            f"rollout.first_frames: {path} holds {count} latent frames and the rollout {latent_frames}, "
            "so nothing is left to generate; make the rollout longer"
        )
    fitted = _fit(frames, *_frame_size(backbone, device))
    return backbone.encode_video(fitted[None].to(device)).float()


def _frame_size(backbone: Backbone, device: torch.device) -> tuple[int, int]:
    """Height and width of the backbone's video frames: what it decodes one latent frame to."""
    latents = torch.zeros(1, 1, *backbone.latent_shape, device=device)
    height, width = backbone.decoder()(latents).shape[-2:]
    return height, width


def _fit(frames: Tensor, height: int, width: int) -> Tensor:
    """Scale uint8 `[n, 3, h, w]` to cover a size, and crop what juts out evenly."""
    scale = max(height / frames.shape[2], width / frames.shape[3])
    size = (max(height, round(frames.shape[2] * scale)), max(width, round(frames.shape[3] * scale)))
    scaled = functional.interpolate(frames.float(), size=size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)
