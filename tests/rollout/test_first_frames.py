"""What a rollout begins with: a clip's end, at the backbone's size and frame rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.backbones.test_synthetic import OVERRIDES
from tests.videos import read_video
from tetherflow.backbone import Backbone
from tetherflow.errors import RecipeError
from tetherflow.plugins import load_backbone
from tetherflow.recipe import load_recipe
from tetherflow.rollout.first_frames import first_latents
from tetherflow.rollout.open_session import open_session
from tetherflow.rollout.writers import VideoWriter

CPU = torch.device("cpu")


@pytest.fixture
def backbone(toy: Path) -> Backbone:
    kind = load_backbone("toy")
    return kind(kind.Options(), device=CPU)


def test_a_clip_of_30_frames_a_second_keeps_its_speed(tmp_path: Path, backbone: Backbone) -> None:
    with VideoWriter(tmp_path / "clip.mp4", fps=30, crf=1) as writer:
        writer.append((2 * torch.arange(90, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 3, 80, 160))
    latents = first_latents(tmp_path / "clip.mp4", backbone, 30, CPU)
    assert latents.shape == (1, 12, *backbone.latent_shape)  # 48 frames at 16 a second, less 3 at the start
    shown = torch.tensor([round((3 + 4 * index) / 16 * 30 - 0.01) for index in range(12)])
    seen = (latents[0, :, 0] + 3.2) * 40
    assert (seen - 2.0 * shown.view(-1, 1, 1)).abs().max() <= 4


def test_the_picture_is_turned_scaled_and_cropped(tmp_path: Path, backbone: Backbone) -> None:
    pixels = np.zeros((320, 128, 3), np.uint8)
    pixels[90:160], pixels[160:230] = 200, 100  # right and left in the picture; it loses 96 rows at each end
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    latents = first_latents(tmp_path / "photo.png", backbone, 2, CPU)
    assert latents.shape == (1, 1, *backbone.latent_shape)
    seen = (latents[0, 0, 0] + 3.2) * 40
    assert (seen[:, :4] - 100).abs().max() <= 1
    assert (seen[:, 5:] - 200).abs().max() <= 1  # between them, where both are blended, is a column


def test_a_clip_encoded_in_pieces_equals_one_encoded_at_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = open_session(load_recipe("fifo", OVERRIDES), CPU).backbone
    with VideoWriter(tmp_path / "clip.mp4", fps=16) as writer:
        writer.append(torch.randint(256, (43, 3, 32, 48), dtype=torch.uint8))
    whole = backbone.encoder()(read_video(tmp_path / "clip.mp4")[None, 2:])
    found = first_latents(tmp_path / "clip.mp4", backbone, 12, CPU)
    assert found.shape == whole.shape == (1, 11, *backbone.latent_shape)
    assert (found - whole).abs().max() <= 1e-5


def test_a_clip_that_fills_the_rollout_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    with VideoWriter(tmp_path / "clip.mp4", fps=16) as writer:
        writer.append(torch.zeros(13, 3, 64, 64, dtype=torch.uint8))
    assert first_latents(tmp_path / "clip.mp4", backbone, 5, CPU).shape[1] == 4
    with pytest.raises(RecipeError, match="holds 4 latent frames and the rollout 4"):
        first_latents(tmp_path / "clip.mp4", backbone, 4, CPU)
