"""Runs a recipe through Lightning's trainer, in one process or several."""

from __future__ import annotations

import signal
import time

import attrs
from torch.multiprocessing.spawn import ProcessExitedException

from tetherflow import errors
from tetherflow.errors import TetherflowError
from tetherflow.recipe import Recipe, advice_on
from tetherflow.rollout.batches import PromptBatches, items_of
from tetherflow.rollout.devices import accelerator_of
from tetherflow.rollout.interrupt import relay_signals, restored_signals
from tetherflow.rollout.log import run_logger
from tetherflow.rollout.module import RolloutModule
from tetherflow.rollout.progress import RolloutProgress
from tetherflow.rollout.run_folder import RunFolder, Status, Stop, VideoRecord
from tetherflow.rollout.trainer import prediction_trainer


@attrs.frozen
class RunResult:
    """How a run came out.

    Attributes:
        folder: where everything is.
        status: complete, or interrupted from outside.
        signal: the signal that interrupted it; None if none did.
        videos: the videos that were begun, in order.
        seconds: wall time of the run, loading included.
    """

    folder: RunFolder
    status: Status
    signal: int | None
    videos: list[VideoRecord]
    seconds: float


def run_recipe(recipe: Recipe, progress: RolloutProgress | None = None) -> RunResult:
    """Generate a recipe's videos into a new run folder.

    Args:
        recipe: a validated recipe.
        progress: shows progress; silent if omitted.

    Returns:
        How it came out. An interrupted run returns too: its videos play up to where they were cut.

    Raises:
        OutputError: The output folder cannot be written; found out before anything else is done.
        RecipeError: The machine lacks a device that the recipe asks for.
        WeightsError: The backbone's weights cannot be used.
        StageError: A stage plugin failed. The videos begun so far stay in the run folder and play.
    """
    started = time.monotonic()
    accelerator_of(recipe)  # a missing device is found out before a folder is made
    folder = RunFolder.create(recipe)
    log = run_logger(folder.log)
    log.info(
        "run started", recipe=recipe.output.name, videos=len(items_of(recipe)), devices=recipe.runtime.devices
    )
    for sentence in advice_on(recipe):
        log.warning("advice", message=sentence)
    module = RolloutModule(recipe, folder, progress or RolloutProgress(enabled=False))
    stops: list[Stop] = []
    relayed: list[int] = []
    crash: Exception | None = None
    with restored_signals():
        if recipe.runtime.devices > 1:
            relayed = relay_signals()
        try:
            trainer = prediction_trainer(recipe, folder.path)
            trainer.predict(module, datamodule=PromptBatches(recipe), return_predictions=False)
        except SystemExit:  # how Lightning ends on a Ctrl-C that comes between its hooks
            stops.append(Stop(signal=signal.SIGINT))
        except ProcessExitedException as error:
            stops.append(Stop("TetherflowError", [f"a process of the run ended unexpectedly: {error}"]))
        except Exception as error:
            crash = error
            stops.append(Stop(type(error).__name__, [str(error)]))
    stops = [*[Stop(signal=number) for number in relayed[:1]], *folder.stops(), *stops]
    result = _finish(folder, stops, time.monotonic() - started)
    log.info("run ended", status=result.status, seconds=round(result.seconds, 3))
    if result.status == "failed":
        failure = crash or module.failure or _error_of(stops)
        if not folder.remove_if_empty():
            failure.add_note(f"What was generated before is kept in {folder.path}")
        raise failure
    if result.status == "interrupted":
        folder.remove_if_empty()
    return result


def _finish(folder: RunFolder, stops: list[Stop], seconds: float) -> RunResult:
    """Write the results of a run."""
    signals = [stop.signal for stop in stops if stop.signal is not None]
    failures = [stop for stop in stops if stop.signal is None]
    # A process that dies of the signal everyone got is no failure.
    status: Status = "interrupted" if signals else "failed" if failures else "complete"
    videos = folder.records()
    folder.finish(
        {
            "status": status,
            "seconds": round(seconds, 3),
            "errors": [f"{stop.error}: {_error_of([stop])}" for stop in failures],
            "videos": [attrs.asdict(video) for video in videos],
        }
    )
    return RunResult(folder, status, signals[0] if signals else None, videos, seconds)


def _error_of(stops: list[Stop]) -> TetherflowError:
    """The first error that a process noted, as an exception."""
    stop = next(stop for stop in stops if stop.signal is None)
    kind = getattr(errors, stop.error, TetherflowError)
    error: TetherflowError = kind(*stop.arguments)
    return error
