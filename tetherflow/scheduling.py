"""A stage whose options are scheduled: what they are in one call of a hook."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from tetherflow.cache.answers import Selection
from tetherflow.cache.checks import Checks
from tetherflow.cache.events import Event
from tetherflow.cache.one_sample import one_sample
from tetherflow.cache.stage_data import Candidates, Draft
from tetherflow.errors import StageError, TetherflowError
from tetherflow.schedule_fitting import number_for
from tetherflow.schedules import Schedule, SignalSchedule, TimeSchedule
from tetherflow.stages import Stage


@attrs.frozen(eq=False)
class Scheduled:
    """A stage with scheduled options.

    Attributes:
        stage: the stage.
        schedules: by option.
        frame_seconds: how long a latent frame is in the video.
    """

    stage: Stage
    schedules: Mapping[str, Schedule]
    frame_seconds: float

    @property
    def measures(self) -> bool:
        """Whether one of the options is driven by a signal."""
        return any(isinstance(schedule, SignalSchedule) for schedule in self.schedules.values())

    def call(
        self,
        hook: Callable[..., Any],
        given: Mapping[str, Any],
        fail: Callable[[str], StageError],
        checks: Checks,
    ) -> Any:
        """Call a hook of the stage with its options as they are now; sample by sample if one is measured.

        Args:
            hook: the hook.
            given: its arguments.
            fail: makes errors that are found a chunk later.
            checks: takes the conditions on what is measured.
        """
        timed = self._timed(given)
        measured = self._measured(given, fail, checks)
        if not measured:
            with self._options(timed):
                return hook(**given)
        batch = len(next(iter(measured.values())))
        if batch == 1:
            with self._options(timed | {option: value[0] for option, value in measured.items()}):
                return hook(**given)
        shown, results = [], []
        for index in range(batch):
            shown.append({name: one_sample(value, index) for name, value in given.items()})
            with self._options(timed | {option: value[index] for option, value in measured.items()}):
                results.append(hook(**shown[-1]))
        for name, whole in given.items():
            if isinstance(whole, Draft):
                whole.keys = torch.cat([one[name].keys for one in shown])
                whole.values = torch.cat([one[name].values for one in shown])
        return _joined(results)

    def _timed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options that depend on time."""
        frame = next(at for at in map(_frame, given.values()) if at is not None)
        found = {}
        for option, schedule in self.schedules.items():
            if isinstance(schedule, TimeSchedule):
                low, high = schedule.bounds
                with _blamed(schedule, option):
                    value = float(schedule.at(frame * self.frame_seconds))
                    if not math.isfinite(value):
                        raise TetherflowError(f"returned {value}; expected a finite number")
                found[option] = number_for(type(self.stage), option, min(max(value, low), high))
        return found

    def _measured(
        self, given: Mapping[str, Any], fail: Callable[[str], StageError], checks: Checks
    ) -> dict[str, Tensor]:
        """Options that are measured, float32 `[B]` each."""
        found = {}
        for option, schedule in self.schedules.items():
            if isinstance(schedule, SignalSchedule):
                shown = next(one for one in given.values() if isinstance(one, Candidates | Draft))
                with _blamed(schedule, option):
                    value = schedule.measure(shown.newcomers)
                    _check_signal(value, shown.origins)
                checks.finite(value, _not_finite(fail, schedule, option))
                found[option] = value.float().clamp(*schedule.bounds)
        return found

    @contextmanager
    def _options(self, update: Mapping[str, Any]) -> Iterator[None]:
        before = self.stage.options
        self.stage.options = before.model_copy(update=update)
        try:
            yield
        finally:
            self.stage.options = before


def _frame(given: object) -> int | None:
    """The latent frame at which a hook is called, as one of its arguments tells it."""
    return given.frame if isinstance(given, Event) else getattr(given, "first_frame", None)


def _check_signal(value: object, origins: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TetherflowError(f"returned a {type(value).__name__}; expected a tensor, a number a sample")
    expected = tuple(origins.shape[:1])
    if value.shape != expected or not value.is_floating_point() or value.device != origins.device:
        raise TetherflowError(
            f"returned {value.dtype} {list(value.shape)} on {value.device}; expected floating point "
            f"{list(expected)} on {origins.device}"
        )


def _not_finite(
    fail: Callable[[str], StageError], schedule: Schedule, option: str
) -> Callable[[], StageError]:
    return lambda: fail(f"schedule '{schedule.name}' of its option '{option}' is not finite")


@contextmanager
def _blamed(schedule: Schedule, option: str) -> Iterator[None]:
    """Let errors say that it was an option's schedule."""
    who = f"schedule '{schedule.name}' of its option '{option}'"
    try:
        yield
    except TetherflowError as error:
        raise TetherflowError(f"{who} {error}") from error
    except Exception as error:
        raise TetherflowError(f"{who} raised {type(error).__name__}: {error}") from error


def _joined(results: list[Any]) -> Any:
    """What a hook returned for each sample as for the batch; what cannot be joined is left to be refused."""
    first = results[0]
    if all(isinstance(one, Tensor) and one.dim() for one in results):
        return torch.cat(results)
    if all(isinstance(one, Selection) for one in results):
        weights = None if first.weights is None else torch.cat([one.weights for one in results])
        noted = {name: torch.cat([one.metadata[name] for one in results]) for name in first.metadata}
        return Selection(torch.cat([one.keep for one in results]), weights, noted)
    return first
