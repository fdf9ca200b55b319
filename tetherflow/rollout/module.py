"""The Lightning module that generates a run's videos, batch by batch, as `predict_step`."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import structlog
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from tetherflow.errors import TetherflowError
from tetherflow.recipe import Recipe, latent_frames_of
from tetherflow.rollout.batch_output import BatchOutput
from tetherflow.rollout.batches import Item, PromptBatches, threads_of
from tetherflow.rollout.first_frames import first_latents
from tetherflow.rollout.interrupt import Interruption
from tetherflow.rollout.lock import lock_of
from tetherflow.rollout.log import run_logger
from tetherflow.rollout.open_session import open_session
from tetherflow.rollout.progress import RolloutProgress
from tetherflow.rollout.run_folder import RunFolder, Status, Stop, VideoRecord
from tetherflow.rollout.session import Chunk, Session


class RolloutModule(LightningModule):
    """Streams batches of prompts through a session and writes the videos as chunks come.

    Errors that Tetherflow raises on purpose, and a Ctrl-C, end this process's work but do not leave
    `predict`: the videos are closed, and the reason is noted in the run folder, where whoever started the run
    finds it. So no process is killed for another's error while it writes.

    Args:
        recipe: what is run.
        folder: where it is written.
        progress: shows progress, in the process of rank 0.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, progress: RolloutProgress) -> None:
        super().__init__()
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.latent_frames = latent_frames_of(recipe)
        self.failure: TetherflowError | None = None
        self.stopped = False
        self._interruption = Interruption()
        self._session: Session | None = None
        self._first: Tensor | None = None
        self._threads_before = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A spawned process begins here; a Ctrl-C that ended it before `setup` would leave its parent waiting.
        self._interruption.arm()

    def setup(self, stage: str) -> None:
        """Load the backbone and build the policy, unless there is nothing to do in this process."""
        self._interruption.arm()
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads_of(self.recipe))
        share = self._share()
        if not share:
            return
        try:
            with self._interruption.allowed():
                self._load()
            if self.trainer.is_global_zero:
                self.progress.start(len(share) * self._chunk_count())
        except KeyboardInterrupt:
            self._note_signal()
        except TetherflowError as error:
            self._fail(error)

    def on_predict_start(self) -> None:
        """Take back the signals, whose handlers Lightning has replaced since `setup`."""
        self._interruption.arm()

    def predict_step(self, batch: list[Item], batch_idx: int) -> list[VideoRecord]:
        """Generate one batch.

        Args:
            batch: the videos to make.
            batch_idx: the batch's place in this process's share.

        Returns:
            How they came out; nothing if this process has stopped.
        """
        if self.stopped or self._session is None:
            return []
        label = _label(batch)
        self._log.info("batch started", videos=[item.index for item in batch])
        output = BatchOutput(self.folder, batch, self._session.backbone.fps, self.device)
        status: Status = "failed"
        try:
            for chunk in self._chunks(self._session, batch):
                frames = output.append(chunk)
                output.cache_bytes = max(output.cache_bytes, self._session.nbytes)
                seconds = output.chunk_seconds[-1]
                self.progress.chunk(seconds, frames, label)
                self._log.info("chunk", index=chunk.index, frames=frames, seconds=round(seconds, 4))
            status = "complete"
        except KeyboardInterrupt:
            status = "interrupted"
        except TetherflowError as error:
            self._fail(error)
        finally:
            records = self._close(output, status)
        self._log.info("batch ended", videos=[item.index for item in batch], status=status)
        if self._interruption.signal is not None:
            self._note_signal()
        return records

    def teardown(self, stage: str) -> None:
        """Give back what was changed for the whole process."""
        self.progress.stop()
        if self._threads_before:
            torch.set_num_threads(self._threads_before)

    def _share(self) -> list[list[Item]]:
        source = getattr(self.trainer, "datamodule", None)
        if not isinstance(source, PromptBatches):
            raise TypeError("RolloutModule takes its batches from PromptBatches")
        return source.share()

    def _load(self) -> None:
        """Load the backbone, open the session and, in the process of rank 0, write the lock."""
        # Lightning moves the module to its device only after `setup`.
        recipe, device = self.recipe, self.trainer.strategy.root_device
        self._session = session = open_session(recipe, device)
        items = [item for batch in self._share() for item in batch]
        session.backbone.expect_prompts([prompt for item in items for prompt in item.schedule.texts])
        if self.trainer.is_global_zero:
            self.folder.write_lock(lock_of(recipe, session))
        if recipe.rollout.first_frames is not None:
            path = Path(recipe.rollout.first_frames)
            self._first = first_latents(path, session.backbone, self.latent_frames, device)

    def _chunks(self, session: Session, batch: list[Item]) -> Iterator[Chunk]:
        """The chunks of a batch; only while one is made may a signal interrupt."""
        first = self._first
        stream = session.stream(
            [item.schedule for item in batch],
            latent_frames=self.latent_frames,
            seeds=[item.seed for item in batch],
            first_latents=None if first is None else first.expand(len(batch), -1, -1, -1, -1),
        )
        while True:
            with self._interruption.allowed():
                chunk = next(stream, None)
            if chunk is None:
                return
            yield chunk

    def _close(self, output: BatchOutput, status: Status) -> list[VideoRecord]:
        try:
            return output.close(status)
        except TetherflowError as error:
            self._fail(error)
            return []

    def _chunk_count(self) -> int:
        """Chunks of one batch: those that are given, and those that are generated."""
        size = self._session.chunk_frames if self._session else 1
        given = 0 if self._first is None else self._first.shape[1]
        return ceil(given / size) + ceil((self.latent_frames - given) / size)

    def _fail(self, error: TetherflowError) -> None:
        self.stopped = True
        self.failure = self.failure or error
        self._log.error("failed", error=type(error).__name__, message=str(error))
        self.folder.add_stop(self.global_rank, Stop(type(error).__name__, list(error.args)))

    def _note_signal(self) -> None:
        self.stopped = True
        self.folder.add_stop(self.global_rank, Stop(signal=self._interruption.signal))

    @property
    def _log(self) -> structlog.typing.FilteringBoundLogger:
        return run_logger(self.folder.log, rank=self.global_rank)


def _label(batch: list[Item]) -> str:
    """Which videos a batch is, from 1."""
    first, last = batch[0].index, batch[-1].index
    if len(batch) == 1:
        return f"video {first + 1}"
    between = "–" if last - first == len(batch) - 1 else ", …, "
    return f"video {first + 1}{between}{last + 1}"
