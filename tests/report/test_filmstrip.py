"""The filmstrip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tetherflow.errors import EvaluationError
from tetherflow.report.filmstrip import filmstrip, frames_at
from tetherflow.rollout.writers import VideoWriter

RED, BLUE = ((220, 30, 30), (30, 30, 220))


def flat(colour: tuple[int, int, int], height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, height, width)


def has(image: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many pixels have a colour, within what resampling does."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(-1, 3).int()
    return int(((pixels - torch.tensor(colour)).abs().amax(dim=1) <= 3).sum())


def test_every_frame_stands_in_its_cell(tmp_path: Path) -> None:
    rows: dict[str, list[torch.Tensor | None]] = {
        "fifo": [flat(RED), flat(BLUE), None],
        "tethercache": [flat(RED), flat(RED), flat(RED)],
    }
    image = filmstrip(rows, ["5 s", "30 s", "240 s"], cell=80)
    cell = 80 * 60
    assert has(image, RED) == 4 * cell
    assert has(image, BLUE) == cell
    assert has(image, (235, 235, 235)) >= cell
    image.save(tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as saved:
        assert saved.size == image.size
    assert image.width > 3 * 80
    assert image.height > 2 * 60


def test_labels_are_drawn_in_the_margin() -> None:
    image = filmstrip({"tethercache": [flat(RED)]}, ["240 s"], cell=80)
    assert has(image.crop((0, 0, image.width - 86, image.height)), (40, 40, 40)) > 20
    assert has(image.crop((image.width - 86, 0, image.width, 16)), (40, 40, 40)) > 5


def test_frames_come_from_files_at_their_times(tmp_path: Path) -> None:
    # A 2-second video as a causal VAE decodes it: 29 frames, not 32; frame i has brightness 8 i.
    frames = (torch.arange(29) * 8).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.append(frames)
    start, middle, end, past = frames_at(tmp_path / "clip.mp4", [0, 1, 2, 3])
    assert past is None
    for frame, brightness in ((start, 0), (middle, 128), (end, 224)):
        assert frame is not None
        assert float(frame.float().mean()) == pytest.approx(brightness, abs=3)


@pytest.mark.parametrize("rows", [{}, {"a": [None]}, {"a": [flat(RED), flat(RED)]}])
def test_a_grid_that_does_not_fit_is_refused(rows: dict[str, list[torch.Tensor | None]]) -> None:
    with pytest.raises(EvaluationError, match="filmstrip"):
        filmstrip(rows, ["5 s"])
