"""Decoding on a stream of its own; run with `pytest -m gpu` on a machine with CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tetherflow.recipe import load_recipe
from tetherflow.rollout.decoding import ChunkDecoder
from tetherflow.rollout.open_session import open_session
from tetherflow.rollout.run import run_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPT = "a red circle and a blue square bounce on a green field"


@torch.inference_mode()
def test_a_stream_of_its_own_changes_no_bit() -> None:
    """While the caller's stream is busy, and whether frames are read on the device or on the host."""
    session = open_session(load_recipe("fifo"), torch.device("cuda"))
    latents = torch.randn(1, 15, *session.backbone.latent_shape, device="cuda")
    plain = ChunkDecoder(session.backbone.decoder(), session.device, beside=False)
    beside = ChunkDecoder(session.backbone.decoder(), session.device)
    expected = [plain(part).on_host() for part in latents.split(3, dim=1)]
    ballast = torch.randn(4096, 4096, device="cuda")
    found = []
    for part in latents.split(3, dim=1):
        decoded = beside(part.clone())  # whose memory the caller's stream may take again at once
        for _ in range(20):
            ballast = (ballast @ ballast).clamp(-1, 1)
        found.append(decoded)
    for decoded, frames in zip(found, expected, strict=True):
        assert torch.equal(decoded.on_host(), frames)
        assert torch.equal(decoded.on_device().cpu(), frames)


def test_a_run_writes_what_its_session_streams(tmp_path: Path) -> None:
    from tests.videos import read_video
    from tetherflow.rollout.writers import VideoWriter

    recipe = load_recipe("tethercache", ["rollout.latent_frames=27", f"output.folder='{tmp_path}'"])
    result = run_recipe(recipe)
    (video,) = result.videos
    session = open_session(recipe, torch.device("cuda"))
    with VideoWriter(tmp_path / "alone.mp4") as writer:
        for chunk in session.stream([PROMPT], latent_frames=27, seeds=[video.seed]):
            assert chunk.frames is not None
            writer.append(chunk.frames[0])
    assert video.file is not None
    assert torch.equal(read_video(result.folder.path / video.file), read_video(tmp_path / "alone.mp4"))
