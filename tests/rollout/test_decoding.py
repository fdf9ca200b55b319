"""Decoding chunk by chunk: on the CPU at once; `tests/gpu` shows that a stream of its own changes no bit."""

from __future__ import annotations

import torch

from tests.rollout.small import RepeatingDecoder
from tetherflow.rollout.decoding import ChunkDecoder, Decoded
from tetherflow.rollout.session import Chunk


def test_frames_are_the_decoders() -> None:
    latents = torch.randn(2, 7, 3, 4, 4)
    decoder, reference = ChunkDecoder(RepeatingDecoder(), torch.device("cpu")), RepeatingDecoder()
    for part in latents.split([3, 3, 1], dim=1):
        decoded, expected = decoder(part), reference(part)
        assert decoded.shape == expected.shape
        assert torch.equal(decoded.on_device(), expected)
        assert torch.equal(decoded.on_host(), expected)


def test_a_chunk_shows_its_frames() -> None:
    frames = torch.zeros(1, 9, 3, 4, 4, dtype=torch.uint8)
    assert Chunk(0, torch.zeros(1), Decoded(frames)).frames is frames
    assert Chunk(0, torch.zeros(1), None).frames is None
