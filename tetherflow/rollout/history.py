"""The newest latents of a rollout, to be encoded again under another prompt."""

from __future__ import annotations

from collections import deque

from torch import Tensor


class LatentHistory:
    """The newest clean latents, by chunk; its size does not grow with the rollout.

    Args:
        frames: how many latent frames are to be had at least, once there were as many.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._chunks: deque[Tensor] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes of the latents kept."""
        return sum(chunk.nbytes for chunk in self._chunks)

    def append(self, latents: Tensor) -> None:
        """Take a copy of a chunk's clean latents `[B, F, C, H, W]`, and forget chunks that are too old."""
        self._chunks.append(latents.clone())
        while sum(chunk.shape[1] for chunk in self._chunks) - self._chunks[0].shape[1] >= self.frames:
            self._chunks.popleft()

    def newest(self, frames: int) -> list[Tensor]:
        """The newest latent frames, oldest chunk first; that one is cut where it began earlier."""
        found: deque[Tensor] = deque()
        for chunk in reversed(self._chunks):
            if frames > 0:
                found.appendleft(chunk[:, -frames:])
            frames -= chunk.shape[1]
        return list(found)
