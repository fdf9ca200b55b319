"""Times policies against each other, chunk by chunk in one process, so that what slows one slows all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs
import torch

from tetherflow.errors import EvaluationError
from tetherflow.recipe import Recipe
from tetherflow.rollout.devices import device_name
from tetherflow.rollout.open_session import Backbones, first_device, open_session, threads_for
from tetherflow.rollout.session import Chunk, Session

STEADY: Final = 10
"""Chunk from which on every cache of the usual budget is full; earlier ones do not count."""
SPAN: Final = 10
"""Chunks whose median stands for a chunk's time, so that no single one decides."""


@attrs.frozen
class Timing:
    """One recipe's chunk times, in seconds.

    Attributes:
        name: the recipe's name.
        device: where it ran, in words.
        dtype: type of the transformer and the cache.
        weights_sha256: of the backbone.
        chunk_seconds: median time of a steady chunk: denoising and context passes, no decoding.
        ratio: median over steady chunks of its time relative to the first recipe's for the same chunk.
        ratio_low: lower end of the 95 % interval of that median, by the bootstrap over chunks.
        ratio_high: upper end.
        early: median time of chunks 10 to 19.
        late: median time of the last ten chunks.
        chunks: chunks generated.
        frames_per_second: video frames a second, of the transformer alone.
        cache_bytes: size of the cache.
    """

    name: str
    device: str
    dtype: str
    weights_sha256: str
    chunk_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    early: float
    late: float
    chunks: int
    frames_per_second: float
    cache_bytes: int


def compare(recipes: Sequence[Recipe], chunks: int, tick: Callable[[], None] = lambda: None) -> list[Timing]:
    """Time recipes against the first of them.

    All roll out side by side in one process: every chunk is timed for each recipe in turn, each time
    beginning with another one, so that a disturbance of the machine meets all alike and the ratios hold on a
    busy one too. A recipe may be given twice; its ratio to itself shows how far to trust the others.

    Args:
        recipes: what to time; the first prompt of each is used, and their `runtime.devices` is not.
        chunks: chunks to generate with each; at least 30.
        tick: called after every chunk of all recipes.

    Raises:
        EvaluationError: There are too few chunks for a steady state, or no recipe.
        WeightsError: A backbone's weights cannot be used.
    """
    if not recipes or chunks < STEADY + 2 * SPAN:
        raise EvaluationError(
            f"{chunks} chunks of {len(recipes)} recipes are too few to time a full cache; "
            f"give at least {STEADY + 2 * SPAN} chunks"
        )
    with threads_for(recipes[0]):
        backbones = Backbones()
        sessions = [_session(recipe, backbones) for recipe in recipes]
        streams = [_stream(*pair, chunks) for pair in zip(sessions, recipes, strict=True)]
        times: list[list[float]] = [[] for _ in recipes]
        for chunk in range(chunks):
            for turn in range(len(recipes)):
                index = (chunk + turn) % len(recipes)
                times[index].append(_timed(streams[index], sessions[index].device))
            tick()
    return [_timing(*each, times[0]) for each in zip(recipes, sessions, times, strict=True)]


def _session(recipe: Recipe, backbones: Backbones) -> Session:
    device = first_device(recipe)
    return open_session(recipe, device, backbones.of(recipe, device))


def _stream(session: Session, recipe: Recipe, chunks: int) -> Iterator[Chunk]:
    return session.stream(
        recipe.rollout.prompts[:1],
        latent_frames=chunks * session.chunk_frames,
        seeds=[recipe.rollout.seed],
        decode=False,
    )


def _timed(stream: Iterator[Chunk], device: torch.device) -> float:
    """Seconds that the next chunk takes."""
    _synchronise(device)
    start = time.perf_counter()
    next(stream)
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timing(recipe: Recipe, session: Session, own: list[float], base: list[float]) -> Timing:
    steady = own[STEADY:]
    ratios = [mine / theirs for mine, theirs in zip(steady, base[STEADY:], strict=True)]
    seconds = statistics.median(steady)
    low, high = _median_interval(ratios)
    return Timing(
        name=recipe.output.name or "",
        device=device_name(session.device),
        dtype=str(session.dtype).removeprefix("torch."),
        weights_sha256=session.backbone.weights_digest(),
        chunk_seconds=seconds,
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        early=statistics.median(own[STEADY : STEADY + SPAN]),
        late=statistics.median(own[-SPAN:]),
        chunks=len(own),
        frames_per_second=4 * session.chunk_frames / seconds,
        cache_bytes=session.cache.nbytes if session.cache else 0,
    )


def _median_interval(values: list[float], resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median, with a fixed seed."""
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (resamples, len(values)), generator=generator)
    medians = sample[picks].median(dim=1).values
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
