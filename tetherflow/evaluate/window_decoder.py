"""Decodes of a rollout only what its windows look at."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tetherflow.evaluate.windows import WindowPlan, WindowRecorder
from tetherflow.rollout.decoding import ChunkDecoder


class WindowDecoder:
    """Takes a rollout's latents, and hands the video frames of its windows to a recorder.

    A decoder that has been away from the rollout begins anew before the next window, as many latent frames
    earlier as it needs to forget that. What the windows see is the same.

    Args:
        plan: the windows.
        recorder: takes the frames.
        new_decoder: makes a decoder that has seen nothing.
        memory: latent frames after which a decoder has forgotten where it began; None if it never does,
            and everything is decoded.
    """

    def __init__(
        self,
        plan: WindowPlan,
        recorder: WindowRecorder,
        new_decoder: Callable[[], ChunkDecoder],
        memory: int | None,
    ) -> None:
        self._recorder = recorder
        self._new_decoder = new_decoder
        self._decoder: ChunkDecoder | None = None
        self._done = 0
        # Video frame f is of latent frame (f + 3) // 4: the first has one, each other four.
        needed = [((first + 3) // 4, (stop + 2) // 4 + 1) for first, stop in plan.spans]
        self._needed = [(0 if memory is None else first - memory, stop) for first, stop in needed]

    def append(self, latents: Tensor) -> None:
        """Take in the next chunk's latents `[B, F, C, H, W]`."""
        start, self._done = self._done, self._done + latents.shape[1]
        if not any(first < self._done and start < stop for first, stop in self._needed):
            self._decoder = None
            return
        if self._decoder is None:
            self._decoder = self._new_decoder()
            self._recorder.skip_to(4 * start)  # where the one video frame of its first latent frame goes
        self._recorder.append(self._decoder(latents).on_device())
