"""Tetherflow: minutes of video from autoregressive video diffusion models, by pluggable cache policies."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tetherflow.cache import (
        Bank,
        Candidates,
        Destination,
        Draft,
        Event,
        Eviction,
        Layout,
        Newcomers,
        Placement,
        Ranks,
        Revision,
        Segment,
        Selection,
        SideShape,
        SideStore,
        Slots,
        Statistics,
        Units,
        When,
    )
    from tetherflow.hookspecs import hookimpl
    from tetherflow.schedules import Schedule, ScheduleOptions, SignalSchedule, TimeSchedule
    from tetherflow.seconds import Seconds
    from tetherflow.stages import Editor, Evictor, Merger, Scorer, Selector, Stage, StageOptions

__version__ = "0.1.0"

__all__ = [
    "Bank",
    "Candidates",
    "Destination",
    "Draft",
    "Editor",
    "Event",
    "Eviction",
    "Evictor",
    "Layout",
    "Merger",
    "Newcomers",
    "Placement",
    "Ranks",
    "Revision",
    "Schedule",
    "ScheduleOptions",
    "Scorer",
    "Seconds",
    "Segment",
    "Selection",
    "Selector",
    "SideShape",
    "SideStore",
    "SignalSchedule",
    "Slots",
    "Stage",
    "StageOptions",
    "Statistics",
    "TimeSchedule",
    "Units",
    "When",
    "hookimpl",
]

_HOMES = {
    "hookspecs": {"hookimpl"},
    "schedules": {"Schedule", "ScheduleOptions", "SignalSchedule", "TimeSchedule"},
    "seconds": {"Seconds"},
    "stages": {"Editor", "Evictor", "Merger", "Scorer", "Selector", "Stage", "StageOptions"},
}
"""Where to find what does not come from the cache."""


def __getattr__(name: str) -> Any:
    """Import what is asked for: PyTorch takes seconds to import, and `tetherflow --help` does not need it."""
    if name not in __all__:
        raise AttributeError(f"module 'tetherflow' has no attribute '{name}'")
    home = next((module for module, names in _HOMES.items() if name in names), "cache")
    value = globals()[name] = getattr(import_module(f"tetherflow.{home}"), name)
    return value
