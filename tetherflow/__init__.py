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
    "Placement",
    "Ranks",
    "Revision",
    "Scorer",
    "Segment",
    "Selection",
    "Selector",
    "SideShape",
    "SideStore",
    "Slots",
    "Stage",
    "StageOptions",
    "Statistics",
    "Units",
    "When",
    "hookimpl",
]

_STAGES = {"Editor", "Evictor", "Merger", "Scorer", "Selector", "Stage", "StageOptions"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: PyTorch takes seconds to import, and `tetherflow --help` does not need it."""
    if name not in __all__:
        raise AttributeError(f"module 'tetherflow' has no attribute '{name}'")
    home = "stages" if name in _STAGES else "hookspecs" if name == "hookimpl" else "cache"
    value = globals()[name] = getattr(import_module(f"tetherflow.{home}"), name)
    return value
