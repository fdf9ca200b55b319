"""Stages of the kit's own, which make a whole policy of a stage under test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from tetherflow.cache import Candidates, Destination, Eviction, Layout, Slots
from tetherflow.errors import PipelineError
from tetherflow.hookspecs import hookimpl
from tetherflow.pipeline import Pipeline
from tetherflow.plugins import load_stage
from tetherflow.stages import Editor, Evictor, Merger, Scorer, Selector, Stage

Kind = TypeVar("Kind", bound=Stage)

KIT: Final = "kit-"
"""What the names of these stages begin with."""


def mix(*numbers: int) -> int:
    """A number in 0..2^31 that looks random (a multiply-and-shift hash)."""
    state = 0x9E3779B9
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFF)) * 0x85EBCA6B & 0xFFFFFFFF
        state = (state ^ (state >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        state ^= state >> 16
    return state >> 1


def draw(salt: int, chunk: int, origins: Sequence[int], count: int) -> list[int]:
    """Indices of `count` of the frames, drawn by lot, in ascending order."""
    return sorted(sorted(range(len(origins)), key=lambda i: mix(salt, chunk, origins[i]))[:count])


def evictable(layout: Layout, held: int, incoming: int) -> range:
    """Ranks that may leave: past the bank, and older than what recent must still hold beside the chunk."""
    return range(layout.standing, held - (layout.recent - incoming))


class Scatter(Evictor):
    """Evicts units drawn by lot, from anywhere between sink or bank and what must stay recent.

    The lot depends on layer, chunk and origins alone: a sample draws the same in any batch.

    Args:
        destination: where they go.
    """

    def __init__(self, destination: Destination = "drop") -> None:
        super().__init__(name=f"{KIT}scatter")
        self.destination = destination  # type: ignore[misc]  # of the instance: both kinds are needed

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Draw `count` ranks for each sample, int64 `[B, count]`."""
        may = evictable(slots.layout, slots.held, slots.incoming)
        drawn = [
            [may[i] for i in draw(slots.layer, slots.chunk, origins[may.start : may.stop], count)]
            for origins in slots.origins.tolist()
        ]
        return Eviction(torch.tensor(drawn, device=slots.origins.device), to=self.destination)


class Oldest(Evictor):
    """Sends the oldest units of recent, past a full sink and memory, to memory's candidates."""

    destination = "memory"

    def __init__(self) -> None:
        super().__init__(name=f"{KIT}oldest")

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose the `count` units past sink, bank and memory."""
        first = slots.layout.standing + slots.layout.memory
        return Eviction(range(first, first + count), to="memory")


class Best(Selector):
    """Keeps the candidates of the highest score."""

    def __init__(self) -> None:
        super().__init__(name=f"{KIT}best")

    @hookimpl
    def select(self, candidates: Candidates, score: Tensor) -> Tensor:
        """Indices of the best, int64 `[B, capacity]`."""
        return score.topk(candidates.capacity, dim=1).indices


class Spread(Scorer):
    """Scores a candidate by its keys' mean square: a sample's score depends on nothing but the sample."""

    def __init__(self) -> None:
        super().__init__(name=f"{KIT}spread")

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        """Mean square of each candidate's mean key, `[B, N]`."""
        return candidates.mean_keys.square().mean(dim=(2, 3))


def complete(stage: Stage) -> Pipeline:
    """Make a whole policy of one stage, with stages of the kit where it needs others.

    A scorer's `needs` are loaded by their registered names, with their default options.

    Args:
        stage: the stage under test.

    Raises:
        PipelineError: No policy can be made around it.
        PluginError: A scorer that it needs is not installed.
    """
    match stage:
        case Evictor(destination="drop"):
            return Pipeline(stage)
        case Evictor(destination="memory"):
            return Pipeline(stage, [Spread()], Best())
        case Scorer():
            return Pipeline(Oldest(), [*_needed(stage), stage], Best())
        case Selector():
            return Pipeline(Oldest(), [Spread()], stage)
        case Editor():
            return Pipeline(Oldest(), [Spread()], Best(), [stage])
        case Merger():
            return Pipeline(Scatter(), merge=stage)
    raise PipelineError(
        f"the kit cannot make a policy around '{stage.name}', a {type(stage).__name__}; "
        "hand in a function that returns the whole Pipeline"
    )


def _needed(scorer: Scorer) -> list[Scorer]:
    """The scorers on which one builds, in order, each before those that need it."""
    found: list[Scorer] = []
    for name in scorer.needs:
        needed = load_stage(name, "score")(name=name)
        if isinstance(needed, Scorer):  # load_stage has checked it; this is for the type checker
            found += [one for one in (*_needed(needed), needed) if one.name not in [f.name for f in found]]
    return found
