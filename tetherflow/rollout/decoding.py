"""Decoding of a chunk beside what the caller computes next."""

from __future__ import annotations

from collections import deque
from typing import Final

import attrs
import torch
from torch import Tensor

from tetherflow.backbone import VideoDecoder

_IN_FLIGHT: Final = 2
"""Chunks that may be decoding on a GPU at once; a decoder that is slower than denoising holds that back."""


@attrs.frozen(eq=False)
class Decoded:
    """A chunk's video frames, which a GPU may still be computing.

    Attributes:
        tensor: where they are or will be, uint8 RGB `[B, n, 3, height, width]`; read it through the methods.
        ready: when they are there; None if they are.
        copies: on which stream they are copied to the host; one of its own if omitted.
    """

    tensor: Tensor
    ready: torch.cuda.Event | None = None
    copies: torch.cuda.Stream | None = None

    @property
    def shape(self) -> torch.Size:
        """`[B, n, 3, height, width]`; known at once."""
        return self.tensor.shape

    def on_device(self) -> Tensor:
        """The frames where they were decoded; what is computed from them next waits for them on the GPU."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.ready)
            self.tensor.record_stream(stream)
        return self.tensor

    def on_host(self) -> Tensor:
        """The frames in the host's memory; this thread waits for them, and no stream of the caller's does."""
        if not self.tensor.is_cuda:
            return self.tensor
        device = self.tensor.device
        with torch.cuda.device(device):  # a new thread begins on the first one
            host = torch.empty(self.shape, dtype=self.tensor.dtype, pin_memory=True)
            # Not the decoder's, behind which the copy would wait for the next chunk's decoding.
            stream = self.copies or torch.cuda.Stream(device)
            stream.wait_event(self.ready or torch.cuda.current_stream(device).record_event())
            with torch.cuda.stream(stream):
                host.copy_(self.tensor, non_blocking=True)
                copied = stream.record_event()
        self.tensor.record_stream(stream)
        copied.synchronize()
        return host


class ChunkDecoder:
    """Decodes one rollout's chunks in order.

    On a GPU decoding runs on a stream of its own, beside the denoising of the next chunk, which the caller
    starts in the meantime. The frames are the same, bit for bit.

    Args:
        decoder: the backbone's, new.
        device: where it runs.
        beside: whether to decode beside other work, where the device can.
    """

    def __init__(self, decoder: VideoDecoder, device: torch.device, *, beside: bool = True) -> None:
        self._decoder = decoder
        beside = beside and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if beside else None
        # One for all chunks: torch has 32 streams, and a later one might be that of a pass being recorded.
        self._copies = torch.cuda.Stream(device) if beside else None
        self._running: deque[torch.cuda.Event] = deque()

    def __call__(self, latents: Tensor) -> Decoded:
        """Decode the next chunk's latents `[B, F, C, H, W]`."""
        if self._stream is None:
            return Decoded(self._decoder(latents))
        while len(self._running) >= _IN_FLIGHT:
            self._running.popleft().synchronize()
        self._stream.wait_stream(torch.cuda.current_stream(latents.device))
        with torch.cuda.stream(self._stream):
            frames = self._decoder(latents)
            ready = self._stream.record_event()
        latents.record_stream(self._stream)
        self._running.append(ready)
        return Decoded(frames, ready, self._copies)
