"""Rolls a recipe out and keeps statistics of its videos instead of the videos."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from tetherflow import errors
from tetherflow.backbone import Backbone
from tetherflow.errors import TetherflowError
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.shelf import Shelf
from tetherflow.evaluate.window_decoder import WindowDecoder
from tetherflow.evaluate.windows import WindowPlan, WindowRecorder, WindowStatistics
from tetherflow.recipe import Recipe, latent_frames_of
from tetherflow.rollout.batches import Item, PromptBatches, batches_of, threads_of
from tetherflow.rollout.decoding import ChunkDecoder
from tetherflow.rollout.interrupt import Interruption, relay_signals, restored_signals
from tetherflow.rollout.open_session import open_session
from tetherflow.rollout.progress import RolloutProgress
from tetherflow.rollout.session import Session
from tetherflow.rollout.trainer import prediction_trainer


def measure(
    recipe: Recipe, plan: WindowPlan, shelf: Shelf, backbone: Backbone, progress: RolloutProgress, label: str
) -> WindowStatistics:
    """Statistics of all videos of a recipe; those that are on the shelf are not made again.

    Args:
        recipe: what is measured, its `runtime.devices` in as many processes.
        plan: the windows.
        shelf: where the statistics are kept.
        backbone: the recipe's, loaded on its device; further processes load their own.
        progress: shows progress; a new one.
        label: what the progress says is measured.

    Raises:
        KeyboardInterrupt: A signal stopped it; what was measured is kept.
        TetherflowError: A stage failed, a process died, or the shelf cannot be written.
    """
    batches = batches_of(recipe)
    if not all(shelf.path(batch).exists() for batch in batches):
        several = recipe.runtime.devices > 1
        module = MeasureModule(recipe, plan, shelf, None if several else backbone, progress, label)
        _predict(module, relay=several)
    return shelf.load(batches)


def _predict(module: MeasureModule, *, relay: bool) -> None:
    relayed: list[int] = []
    with restored_signals():
        if relay:
            relayed = relay_signals()
            _noted_failure(module.shelf.folder)  # of a measurement that ended before it read it
        try:
            trainer = prediction_trainer(module.recipe, module.shelf.folder)
            trainer.predict(module, datamodule=PromptBatches(module.recipe), return_predictions=False)
        except SystemExit as error:  # how Lightning ends on a Ctrl-C that comes between its hooks
            raise KeyboardInterrupt from error
        except (ProcessRaisedException, ProcessExitedException) as error:
            if not relayed:
                failure = _noted_failure(module.shelf.folder)
                if failure is None and isinstance(error, ProcessRaisedException):
                    raise
                raise failure or TetherflowError(f"a process ended unexpectedly: {error}") from error
    if relayed or module.interrupted:
        raise KeyboardInterrupt


class MeasureModule(LightningModule):
    """Streams batches of prompts through a session and keeps each batch's statistics.

    Args:
        recipe: what is measured.
        plan: the windows.
        shelf: where the statistics are kept.
        backbone: the recipe's, loaded on the device of this process; None where the process loads it.
        progress: shows progress, in the process of rank 0.
        label: what the progress says is measured.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: WindowPlan,
        shelf: Shelf,
        backbone: Backbone | None,
        progress: RolloutProgress,
        label: str,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.plan = plan
        self.shelf = shelf
        self.backbone = backbone
        self.progress = progress
        self.label = label
        self.latent_frames = latent_frames_of(recipe)
        self._interruption = Interruption()
        self._stopped = False
        self._threads_before = 0

    @property
    def interrupted(self) -> bool:
        """Whether this process was stopped from outside."""
        return self._stopped or self._interruption.signal is not None

    def setup(self, stage: str) -> None:
        """Open the session, unless there is nothing to do in this process."""
        self._interruption.arm()
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads_of(self.recipe))
        missing = [batch for batch in self._share() if not self.shelf.path(batch).exists()]
        if not missing:
            return
        try:
            # Not self.device: Lightning moves the module only after this hook.
            device = self.trainer.strategy.root_device
            self._session: Session = open_session(self.recipe, device, self.backbone)
            self._session.backbone.expect_prompts([item.prompt for batch in missing for item in batch])
        except TetherflowError as error:
            self._note(error)
            raise
        self._features = FrameFeatures()
        if self.trainer.is_global_zero:
            self.progress.start(len(missing) * -(-self.latent_frames // self._session.chunk_frames))

    def on_predict_start(self) -> None:
        """Take back the signals, whose handlers Lightning has replaced since `setup`."""
        self._interruption.arm()

    def predict_step(self, batch: list[Item], batch_idx: int) -> None:
        """Roll out one batch, unless its statistics are there.

        Args:
            batch: the videos.
            batch_idx: the batch's place in this process's share.
        """
        if self.interrupted or self.shelf.path(batch).exists():
            return
        try:
            self.shelf.save(batch, self._measure(batch))
        except KeyboardInterrupt:
            self._stopped = True
        except TetherflowError as error:
            self._note(error)
            raise

    def teardown(self, stage: str) -> None:
        """Give back what was changed for the whole process."""
        self.progress.stop()
        if self._threads_before:
            torch.set_num_threads(self._threads_before)

    def _measure(self, batch: list[Item]) -> WindowStatistics:
        recorder = WindowRecorder(self.plan, len(batch), self._features)
        stream = self._session.stream(
            [item.prompt for item in batch],
            latent_frames=self.latent_frames,
            seeds=[item.seed for item in batch],
            decode=False,
        )
        windows = WindowDecoder(self.plan, recorder, self._new_decoder, self._session.backbone.decoder_memory)
        started = time.monotonic()
        while True:
            with self._interruption.allowed():
                chunk = next(stream, None)
                if chunk is None:
                    return recorder.finish()
                windows.append(chunk.latents)
            now = time.monotonic()
            self.progress.chunk(now - started, 4 * len(batch) * chunk.latents.shape[1], self.label)
            started = now

    def _new_decoder(self) -> ChunkDecoder:
        session = self._session
        return ChunkDecoder(session.backbone.decoder(), session.device, beside=not session.low_memory)

    def _note(self, error: TetherflowError) -> None:
        """Leave an error for the process that started this one, which else sees only that this one died."""
        if self.trainer.world_size > 1:
            note = {"error": type(error).__name__, "arguments": list(error.args)}
            path = self.shelf.folder / f"failure-{self.global_rank}.json"
            path.write_text(json.dumps(note), encoding="utf-8")

    def _share(self) -> Sequence[list[Item]]:
        source = getattr(self.trainer, "datamodule", None)
        if not isinstance(source, PromptBatches):
            raise TypeError("MeasureModule takes its batches from PromptBatches")
        return source.share()


def _noted_failure(folder: Path) -> TetherflowError | None:
    """The first error that a process left, which is removed."""
    failure: TetherflowError | None = None
    for path in sorted(folder.glob("failure-*.json")):
        note = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(errors, note["error"], TetherflowError)
        failure = failure or kind(*note["arguments"])
        path.unlink()
    return failure
