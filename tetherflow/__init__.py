"""Tetherflow: minutes of video from autoregressive video diffusion models, by pluggable cache policies."""

from tetherflow.cache import Candidates, Destination, Draft, Eviction, Layout, Slots, Statistics
from tetherflow.hookspecs import hookimpl
from tetherflow.stages import Editor, Evictor, Scorer, Selector, Stage, StageOptions

__version__ = "0.1.0"

__all__ = [
    "Candidates",
    "Destination",
    "Draft",
    "Editor",
    "Eviction",
    "Evictor",
    "Layout",
    "Scorer",
    "Selector",
    "Slots",
    "Stage",
    "StageOptions",
    "Statistics",
    "hookimpl",
]
