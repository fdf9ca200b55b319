"""A schedule over time: from one value to another, in a straight line."""

from __future__ import annotations

from pydantic import Field

from tetherflow import ScheduleOptions, Seconds, TimeSchedule


class Ramp(TimeSchedule):
    """Move from one value to another, linearly over time.

    from + (to − from) · clamp((t − start) / seconds, 0, 1), t being when a chunk begins in the video.
    """

    class Options(ScheduleOptions):
        """Options of the ramp."""

        first: float = Field(alias="from", description="The value until `start`.")
        last: float = Field(alias="to", description="The value from `start` + `seconds` on.")
        start: Seconds = Field(default=0.0, description="When it begins to move, such as 10s or 10.")
        seconds: float = Field(gt=0, description="How long it moves.")

    options: Options

    @property
    def bounds(self) -> tuple[float, float]:
        """The two values, the lesser one first."""
        first, last = self.options.first, self.options.last
        return min(first, last), max(first, last)

    def at(self, seconds: float) -> float:
        """The value for a chunk that begins at a time in the video."""
        options = self.options
        passed = min(max((seconds - options.start) / options.seconds, 0.0), 1.0)
        return options.first + (options.last - options.first) * passed
