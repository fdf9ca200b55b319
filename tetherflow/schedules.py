"""Base classes of schedules: plugins that set another plugin's numeric option, chunk by chunk."""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tetherflow.cache.newcomers import Newcomers

SCHEDULE: Final = "schedule"
"""What `tetherflow plugins` calls their stage."""


class ScheduleOptions(BaseModel):
    """Options of a schedule, written beside its `use:`; subclass it with the plugin's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Schedule:
    """What a recipe writes in place of a number: `tau: {use: NAME, …}`.

    Subclass `TimeSchedule` or `SignalSchedule`, declare `Options`, say between which values it moves, and
    implement the one method. A schedule keeps no state between calls, so that a snapshot of the cache holds
    all that a rollout goes on from.

    Args:
        options: validated options; the defaults if omitted.
        name: the plugin's name in the recipe; the class name if omitted.
    """

    stage: ClassVar[str] = SCHEDULE
    Options: ClassVar[type[ScheduleOptions]] = ScheduleOptions

    def __init__(self, options: ScheduleOptions | None = None, *, name: str | None = None) -> None:
        self.options = self.Options() if options is None else options
        self.name = name or type(self).__name__

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value that it gives; a recipe is refused if its option takes less."""
        raise NotImplementedError(f"schedule '{self.name}' does not say between which values it moves")


class TimeSchedule(Schedule):
    """A number that depends on the time in the video alone; all samples have the same."""

    def at(self, seconds: float) -> float:
        """The value for the chunk that begins at a time; rounded where the option is a whole number."""
        raise NotImplementedError(f"schedule '{self.name}' does not implement 'at'")


class SignalSchedule(Schedule):
    """A number measured anew in each layer, for each sample, from what comes to its memory.

    It is computed where the cache lives and never read on the host, so that no chunk waits for it.
    """

    def measure(self, newcomers: Newcomers) -> Tensor:
        """The value for each sample, floating point `[B]`, within the bounds; samples do not mix.

        Args:
            newcomers: statistics of the units just evicted, and of the trusted pool.
        """
        raise NotImplementedError(f"schedule '{self.name}' does not implement 'measure'")
