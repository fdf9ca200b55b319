"""The newest latents: what a list of all of them would give, in bounded memory."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tetherflow.rollout.history import LatentHistory


@given(capacity=st.integers(1, 9), sizes=st.lists(st.integers(1, 4), min_size=1), frames=st.integers(0, 9))
def test_newest_are_those_of_the_whole_rollout(capacity: int, sizes: list[int], frames: int) -> None:
    frames = min(frames, capacity)
    history, chunks = LatentHistory(capacity), []
    for index, size in enumerate(sizes):
        chunks.append(
            torch.full((2, size, 1, 2, 2), float(index)) + torch.arange(size).view(1, -1, 1, 1, 1) / 8
        )
        history.append(chunks[-1])
        assert history.nbytes <= (capacity + 3) * 2 * 4 * 4  # 8 numbers of 4 bytes a frame
        found = history.newest(frames)
        together = torch.cat(chunks, dim=1)[:, max(0, sum(sizes[: index + 1]) - frames) :]
        assert sum(part.shape[1] for part in found) == together.shape[1]
        if found:
            assert torch.equal(torch.cat(found, dim=1), together)
        for part, chunk in zip(reversed(found), reversed(chunks), strict=False):
            assert torch.equal(part, chunk[:, -part.shape[1] :])  # chunks stay apart


def test_it_keeps_copies() -> None:
    history, latents = LatentHistory(3), torch.zeros(1, 3, 1, 2, 2)
    history.append(latents)
    latents += 1
    assert float(history.newest(3)[0].sum()) == 0
