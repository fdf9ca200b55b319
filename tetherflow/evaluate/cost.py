"""What recipes cost beside the first one: the time of a chunk, and the memory of a cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import attrs

from tetherflow.bench import LEAST, Timing, compare
from tetherflow.errors import EvaluationError
from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.recipe import Recipe
from tetherflow.rollout.open_session import Backbones, first_device
from tetherflow.rollout.progress import RolloutProgress


@attrs.frozen
class PolicyCost:
    """What generating one video costs under a recipe; decoding does not count.

    Attributes:
        chunk_seconds: median time of a chunk with a full cache.
        relative: median of a chunk's time relative to the first recipe's for the same chunk, with a 95 %
            interval by the bootstrap over chunks; None for the first recipe.
        cache_bytes: size of the cache after the last chunk, side stores and latents kept to write it anew
            included.
        chunks: chunks generated.
        device: where they were, in words.
    """

    chunk_seconds: float
    relative: Estimate | None
    cache_bytes: int
    chunks: int
    device: str

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PolicyCost:
        """Read what `attrs.asdict` gave."""
        relative = data["relative"]
        return cls(**data | {"relative": None if relative is None else Estimate.from_dict(relative)})

    @classmethod
    def _of(cls, timing: Timing, relative: Estimate | None) -> PolicyCost:
        return cls(timing.chunk_seconds, relative, timing.cache_bytes, timing.chunks, timing.device)


def check_chunks(chunks: int) -> None:
    """Make sure that a number of chunks can be timed.

    Args:
        chunks: to time; none with 0.

    Raises:
        EvaluationError: They are too few to tell the time of a full cache.
    """
    if chunks < 0 or 0 < chunks < LEAST:
        raise EvaluationError(f"{chunks} chunks do not tell the time of a full cache; give {LEAST}, or 0")


def measure_costs(
    recipes: Sequence[Recipe], chunks: int, backbones: Backbones, progress: RolloutProgress
) -> list[PolicyCost]:
    """Time each recipe in turns with the first: two at a time, so that many need no more memory.

    Args:
        recipes: what to time; the first prompt of each is used.
        chunks: chunks to generate with each.
        backbones: those that are loaded already.
        progress: shows progress; a new one.

    Raises:
        EvaluationError: There are too few chunks, or no recipe.
        WeightsError: A backbone's weights cannot be used.
    """
    first, *others = recipes
    progress.start(max(1, len(others)) * chunks)
    try:
        pairs = [_timed([first, other], chunks, backbones, progress) for other in others]
        alone = [] if pairs else _timed([first], chunks, backbones, progress)
    finally:
        progress.stop()
    firsts = [pair[0] for pair in pairs] or alone
    own = attrs.evolve(firsts[0], chunk_seconds=statistics.median(timing.chunk_seconds for timing in firsts))
    costs = [PolicyCost._of(own, None)]
    for _, other in pairs:
        costs.append(PolicyCost._of(other, Estimate(other.ratio, other.ratio_low, other.ratio_high)))
    return costs


def _timed(
    recipes: Sequence[Recipe], chunks: int, backbones: Backbones, progress: RolloutProgress
) -> list[Timing]:
    label = "timing " + " beside ".join(recipe.output.name or "" for recipe in reversed(recipes))
    before = time.monotonic()

    def tick() -> None:
        nonlocal before
        now = time.monotonic()
        progress.chunk(now - before, frames, label)
        before = now

    backbone = backbones.of(recipes[0], first_device(recipes[0]))
    frames = 4 * len(recipes) * (recipes[0].rollout.chunk_frames or backbone.sampler.chunk_frames)
    return compare(recipes, chunks, tick, backbones=backbones)
