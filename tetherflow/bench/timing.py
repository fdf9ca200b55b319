"""Chunk times of recipes, and of other implementations, in turns in one process: what slows one slows all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import attrs
import torch

from tetherflow.bench.against import Implementation, stream_of, workload_of
from tetherflow.bench.stopwatch import synchronise
from tetherflow.errors import EvaluationError
from tetherflow.recipe import Recipe
from tetherflow.rollout.batches import items_of
from tetherflow.rollout.devices import device_name
from tetherflow.rollout.open_session import Backbones, first_device, open_session, threads_for
from tetherflow.rollout.session import Session

STEADY: Final = 8
"""Chunk from which on every cache of the usual budget is full; earlier ones do not count."""
SPAN: Final = 10
"""Chunks whose median stands for a chunk's time, so that no single one decides."""
LEAST: Final = STEADY + 2 * SPAN
"""The fewest chunks that tell a full cache's time."""


Span = float | tuple[torch.cuda.Event, torch.cuda.Event]
"""Seconds, or where a GPU begins and ends."""


@attrs.frozen
class Timing:
    """Chunk times of one recipe or other implementation, in seconds.

    Attributes:
        name: the recipe's name, or the implementation's.
        attention: its attention kernel; empty if unknown.
        device: where it ran, in words.
        dtype: type of the transformer and the cache.
        weights_sha256: of the backbone; empty if unknown.
        chunk_seconds: median time of a steady chunk: denoising and context passes, no decoding.
        ratio: median over steady chunks of its time relative to the first recipe's for the same chunk.
        ratio_low: lower end of the 95 % interval of that median, by the bootstrap over chunks.
        ratio_high: upper end.
        early: median time of chunks 8 to 17.
        late: median time of the last ten chunks.
        chunks: chunks generated.
        frames_per_second: video frames a second, of the transformer alone.
        cache_bytes: size of the cache, and of latents kept to write it anew; 0 if unknown.
    """

    name: str
    attention: str
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


@attrs.frozen(eq=False)
class _Lane:
    """What is timed: each step of the stream generates one chunk."""

    name: str
    stream: Iterator[object]
    session: Session
    is_ours: bool


def compare(
    recipes: Sequence[Recipe],
    chunks: int,
    tick: Callable[[], None] = lambda: None,
    *,
    rivals: Mapping[str, Implementation] | None = None,
    backbones: Backbones | None = None,
) -> list[Timing]:
    """Time recipes, and other implementations, against the first recipe.

    All roll out side by side in one process: every chunk is timed for each in turn, each time beginning with
    another one, so that a disturbance of the machine meets all alike and the ratios hold on a busy one too. A
    recipe may be given twice; its ratio to itself shows how far to trust the others.

    Args:
        recipes: what to time; the first prompt of each is used, and their `runtime.devices` is not.
        chunks: chunks to generate with each; at least 28.
        tick: called after every chunk of all.
        rivals: other implementations by name; they are asked for the first recipe's workload.
        backbones: those that are loaded already.

    Raises:
        EvaluationError: There are too few chunks for a steady state, no recipe, or an implementation that
            stops early.
        WeightsError: A backbone's weights cannot be used.
    """
    if not recipes or chunks < LEAST:
        raise EvaluationError(
            f"{chunks} chunks of {len(recipes)} recipes are too few to time a full cache; "
            f"give at least {LEAST} chunks"
        )
    backbones = backbones or Backbones()
    with threads_for(recipes[0]):
        lanes = [_lane(recipe, backbones, chunks) for recipe in recipes]
        first = lanes[0].session
        for name, rival in (rivals or {}).items():
            work = workload_of(first, chunks)
            lanes.append(_Lane(name, stream_of(name, rival, work), first, is_ours=False))
        spans: list[list[Span]] = [[] for _ in lanes]
        for chunk in range(chunks):
            for turn in range(len(lanes)):
                index = (chunk + turn) % len(lanes)
                spans[index].append(_timed(lanes[index].stream, first.device))
            tick()
        synchronise(first.device)
    times = [[_seconds(span) for span in own] for own in spans]
    return [_timing(lane, own, times[0]) for lane, own in zip(lanes, times, strict=True)]


def _lane(recipe: Recipe, backbones: Backbones, chunks: int) -> _Lane:
    device = first_device(recipe)
    session = open_session(recipe, device, backbones.of(recipe, device))
    stream = session.stream(
        [items_of(recipe)[0].schedule],
        latent_frames=chunks * session.chunk_frames,
        seeds=[recipe.rollout.seed],
        decode=False,
    )
    return _Lane(recipe.output.name or "", stream, session, is_ours=True)


def _timed(stream: Iterator[object], device: torch.device) -> Span:
    """How long the next chunk takes: by the clock, or on a GPU between events among its work.

    A GPU is not waited for, as in a rollout: while it computes a chunk the host launches the next.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        next(stream)
        return time.perf_counter() - start
    events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    events[0].record(torch.cuda.current_stream(device))
    next(stream)
    events[1].record(torch.cuda.current_stream(device))
    return events


def _seconds(span: Span) -> float:
    """A span's length, once the device has passed it."""
    return span if isinstance(span, float) else float(span[0].elapsed_time(span[1])) / 1000


def _timing(lane: _Lane, own: list[float], base: list[float]) -> Timing:
    session = lane.session
    steady = own[STEADY:]
    ratios = [mine / theirs for mine, theirs in zip(steady, base[STEADY:], strict=True)]
    seconds = statistics.median(steady)
    low, high = _median_interval(ratios)
    return Timing(
        name=lane.name,
        attention=session.attention.name if lane.is_ours else "",
        device=device_name(session.device),
        dtype=str(session.dtype).removeprefix("torch."),
        weights_sha256=session.backbone.weights_digest() if lane.is_ours else "",
        chunk_seconds=seconds,
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        early=statistics.median(own[STEADY : STEADY + SPAN]),
        late=statistics.median(own[-SPAN:]),
        chunks=len(own),
        frames_per_second=4 * session.chunk_frames / seconds,
        cache_bytes=session.nbytes if lane.is_ours else 0,
    )


def _median_interval(values: list[float], resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median, with a fixed seed."""
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (resamples, len(values)), generator=generator)
    medians = sample[picks].median(dim=1).values
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
