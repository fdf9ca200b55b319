"""Decoding only what windows look at."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.window_decoder import WindowDecoder
from tetherflow.evaluate.windows import WindowPlan, WindowRecorder, WindowStatistics
from tetherflow.rollout.decoding import ChunkDecoder

CPU = torch.device("cpu")
FEATURES = FrameFeatures()


class Smearing:
    """Shows the sum of the newest latent frames, as many as its memory; counts what it decodes."""

    decoded = 0

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.seen: list[Tensor] = []

    def __call__(self, latents: Tensor) -> Tensor:
        frames = []
        for latent in latents.unbind(1):
            first = not self.seen
            self.seen = [*self.seen, latent][-self.memory :]
            frames += [torch.stack(self.seen).sum(dim=0).remainder(256)] * (1 if first else 4)
            Smearing.decoded += 1
        shades = torch.arange(4).repeat(len(frames))[-len(frames) :].view(1, -1, 1, 1, 1)
        return (torch.stack(frames, dim=1) + shades).remainder(256).to(torch.uint8)


def statistics(latents: Tensor, plan: WindowPlan, chunk: int, memory: int, known: bool) -> WindowStatistics:
    recorder = WindowRecorder(plan, len(latents), FEATURES)
    windows = WindowDecoder(
        plan, recorder, lambda: ChunkDecoder(Smearing(memory), CPU), memory if known else None
    )
    for part in latents.split(chunk, dim=1):
        windows.append(part)
    return recorder.finish()


@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(4, 40),
    ends=st.sets(st.floats(0.5, 9.5), min_size=1, max_size=3),
    chunk=st.integers(1, 5),
    memory=st.integers(1, 6),
)
def test_windows_see_the_same_frames(total: int, ends: set[float], chunk: int, memory: int) -> None:
    frames = 1 + 4 * (total - 1)
    plan = WindowPlan.of(frames, [min(end, frames / 16) for end in ends], fps=16, seconds=0.5)
    random = torch.Generator().manual_seed(total)
    latents = torch.randint(256, (2, total, 3, 8, 8), generator=random).float()
    every = statistics(latents, plan, chunk, memory, known=False)
    some = statistics(latents, plan, chunk, memory, known=True)
    for name in ("count", "total", "outer"):
        # Frames go through the features in other batches, which rounds otherwise.
        torch.testing.assert_close(
            getattr(every.features, name), getattr(some.features, name), atol=1e-5, rtol=1e-5
        )
    assert torch.equal(every.colour, some.colour)
    assert torch.equal(every.motion, some.motion)


def test_what_no_window_needs_is_not_decoded() -> None:
    plan = WindowPlan.of(397, [10, 24.8], fps=16, seconds=1)
    latents = torch.zeros(1, 100, 3, 8, 8)
    Smearing.decoded = 0
    statistics(latents, plan, 3, memory=6, known=True)
    assert Smearing.decoded <= 3 * (5 + 6 + 2 * 2)
    Smearing.decoded = 0
    statistics(latents, plan, 3, memory=6, known=False)
    assert Smearing.decoded >= 99


def test_a_frame_of_a_window_cannot_be_skipped() -> None:
    recorder = WindowRecorder(WindowPlan.of(64, [4], fps=16, seconds=1), 1, FEATURES)
    recorder.append(torch.zeros(1, 16, 3, 8, 8, dtype=torch.uint8))
    recorder.skip_to(40)
    with pytest.raises(EvaluationError, match="frames 40 to 49 are skipped, but a window holds some"):
        recorder.skip_to(50)
