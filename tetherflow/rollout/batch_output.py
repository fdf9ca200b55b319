"""The videos of one batch while they are being written."""

from __future__ import annotations

import time

import attrs
import torch

from tetherflow.errors import TetherflowError
from tetherflow.rollout.background import Background
from tetherflow.rollout.batches import Item
from tetherflow.rollout.decoding import Decoded
from tetherflow.rollout.devices import peak_memory
from tetherflow.rollout.run_folder import RunFolder, Status, VideoRecord
from tetherflow.rollout.session import Chunk
from tetherflow.rollout.writers import VideoWriter


class BatchOutput:
    """Writes the videos of a batch side by side, and notes how they came out.

    Frames are encoded in a thread of their own while the next chunk is made.

    Args:
        folder: the run's folder.
        items: the batch.
        fps: video frames a second.
        device: where they are generated, whose memory is noted.
    """

    def __init__(self, folder: RunFolder, items: list[Item], fps: int, device: torch.device) -> None:
        self.folder = folder
        self.items = items
        self.chunk_seconds: list[float] = []
        self.latent_frames = 0
        self.cache_bytes = 0
        self._device = device
        self._writers = [VideoWriter(folder.video(item), fps=fps) for item in items]
        self._background = Background(self._write)
        self._started = self._last = time.monotonic()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def append(self, chunk: Chunk) -> int:
        """Hand a chunk's frames to the writers; waits only while they are two chunks behind.

        Returns:
            How many video frames it had, over all videos.

        Raises:
            OutputError: A video could not be written.
        """
        if chunk.decoded is None:
            raise TypeError("a chunk without frames cannot be written; let the session decode")
        self._background.put(chunk.decoded)
        self.latent_frames += chunk.latents.shape[1]
        now = time.monotonic()
        self.chunk_seconds.append(now - self._last)
        self._last = now
        return chunk.decoded.shape[0] * chunk.decoded.shape[1]

    def close(self, status: Status) -> list[VideoRecord]:
        """Write what is waiting, finish all videos even if one cannot be, and note how they came out.

        Raises:
            OutputError: A video could not be written, or cannot be finished.
        """
        error: BaseException | None = self._background.finish()
        if error is not None:
            status = "failed"
        records = []
        for item, writer in zip(self.items, self._writers, strict=True):
            try:
                path = writer.close(interrupted=status != "complete")
            except TetherflowError as problem:
                error, path, status = error or problem, None, "failed"
            record = VideoRecord(
                index=item.index,
                file=str(path.relative_to(self.folder.path)) if path else None,
                prompt=item.prompt,
                switches=[attrs.asdict(switch) for switch in item.switches],
                sample=item.sample,
                seed=item.seed,
                status=status,
                latent_frames=self.latent_frames,
                frames=writer.frames_written,
                seconds=time.monotonic() - self._started,
                chunk_seconds=[round(seconds, 6) for seconds in self.chunk_seconds],
                cache_bytes=self.cache_bytes,
                peak_memory_bytes=peak_memory(self._device),
            )
            self.folder.add_record(record)
            records.append(record)
        if error is not None:
            raise error
        return records

    def _write(self, decoded: Decoded) -> None:
        for writer, video in zip(self._writers, decoded.on_host(), strict=True):
            writer.append(video)
