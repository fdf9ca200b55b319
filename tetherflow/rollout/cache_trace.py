"""What a cache holds, chunk after chunk of a rollout: which frames, in which region, and whose content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import pluggy
import torch
from torch import Tensor

from tetherflow.cache import CacheEngine, Layout, Regions, Selection
from tetherflow.errors import EvaluationError
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import Recipe
from tetherflow.recipe.parts import LATENT_STRIDE
from tetherflow.rollout.batches import items_of
from tetherflow.rollout.open_session import first_device, open_session, threads_for
from tetherflow.rollout.prompts import PromptSchedule
from tetherflow.rollout.session import Session

TRACE: Final = 1e-3
"""Share of a unit's content below which a frame no longer counts."""


@attrs.frozen
class Held:
    """What a layer holds of the first sample after a chunk.

    Attributes:
        origins: serial numbers of the units, in time order.
        regions: which of them, by rank, make up each region.
        chunk: ranks of the chunk's units, the tail of the recent region.
        changed: ranks of the units whose values are no longer those that were written for them.
        contents: of changed units, by rank: the units of which they consist, by origin, and their shares;
            where it can be told. A copy is one unit with share 1.
    """

    origins: tuple[int, ...]
    regions: Regions
    chunk: range
    changed: frozenset[int]
    contents: Mapping[int, Mapping[int, float]]


@attrs.frozen
class CacheTrace:
    """What a layer held after every chunk of a rollout.

    Attributes:
        layer: which of the transformer's layers.
        layout: the cache's regions, in units.
        chunk_frames: latent frames of a chunk.
        chunk_seconds: length of a chunk in the video.
        chunks: what was held after each chunk.
        switches: chunks right before which the prompt switched, and what the cache did.
    """

    layer: int
    layout: Layout
    chunk_frames: int
    chunk_seconds: float
    chunks: tuple[Held, ...]
    switches: Mapping[int, str]


def trace_cache(
    recipe: Recipe, chunks: int, layer: int | None = None, tick: Callable[[], None] = lambda: None
) -> CacheTrace:
    """Roll out a recipe's first video, without decoding it, and note what one layer's cache holds.

    Given first frames are left out: the video begins with noise.

    Args:
        recipe: what to roll out.
        chunks: how many chunks.
        layer: which layer; the middle one if omitted.
        tick: called after every chunk.

    Raises:
        EvaluationError: The backbone has no such layer.
        WeightsError: The backbone's weights cannot be used.
        StageError: The policy broke a rule.
    """
    session = open_session(recipe, first_device(recipe))
    layers = session.backbone.cache_shape.layers
    layer = layers // 2 if layer is None else layer
    if not 0 <= layer < layers:
        raise EvaluationError(
            f"there is no layer {layer}; backbone '{recipe.backbone.use}' has layers 0 to {layers - 1}"
        )
    item, frames = items_of(recipe)[0], session.chunk_frames
    timetable = item.schedule.timetable
    held: list[Held] = []
    with threads_for(recipe):
        for state in held_over_time(session, [item.schedule], chunks * frames, [item.seed], layer):
            held.append(state)
            tick()
    return CacheTrace(
        layer,
        session.layout.in_units(session.backbone.cache_shape.parts(session.unit)),
        frames,
        frames * LATENT_STRIDE / session.backbone.fps,
        tuple(held),
        {-(-begin // frames): how for begin, how in timetable if begin <= (chunks - 1) * frames},
    )


def held_over_time(
    session: Session,
    prompts: Sequence[str | PromptSchedule],
    latent_frames: int,
    seeds: Sequence[int],
    layer: int,
) -> Iterator[Held]:
    """Stream videos without decoding them; yields what a layer holds of the first after each chunk."""
    contents = Contents()
    policy = session.policy
    undo = contents.follow(policy, layer) if isinstance(policy, Pipeline) else lambda: None
    try:
        for chunk in session.stream(prompts, latent_frames=latent_frames, seeds=seeds, decode=False):
            if session.cache is not None:
                yield _held(session.cache, layer, chunk.latents.shape[1], contents)
    finally:
        undo()


def _held(cache: CacheEngine, layer: int, frames: int, contents: Contents) -> Held:
    origins = tuple(cache.origins()[layer, 0].tolist())
    chunk = range(cache.held - frames * cache.layout.parts, cache.held)
    _, values = cache.contents(layer)
    changed, made_of = contents.compare(origins, values[0], chunk)
    return Held(origins, cache.regions, chunk, changed, made_of)


class Contents:
    """Knows a layer's units by their values: which have changed since they were written, and into what."""

    def __init__(self) -> None:
        self._written: dict[int, int] = {}  # origin, and the fingerprint of what was written for it
        self._whose: dict[int, int] = {}  # the reverse
        self._blends: dict[int, dict[int, float]] = {}  # origin, and the origins and weights it is a sum of

    def follow(self, pipeline: Pipeline, layer: int) -> Callable[[], None]:
        """Note the weights with which a selector blends this layer's memory; returns what ends that."""
        shared = pipeline.uses.decides_at
        deciding = layer if shared is None else min(layer, shared)

        def selected(outcome: pluggy.Result[Any], hook: str, methods: Any, given: Mapping[str, Any]) -> None:
            if hook != "select" or outcome.exception is not None or given["candidates"].layer != deciding:
                return
            candidates, choice = given["candidates"], outcome.get_result()
            if isinstance(choice, Selection) and choice.weights is not None:
                self._blend(
                    candidates.origins[0].tolist(), choice.keep[0].tolist(), choice.weights[0].tolist()
                )

        return pipeline.manager.add_hookcall_monitoring(lambda *_: None, selected)

    def compare(
        self, origins: Sequence[int], values: Tensor, chunk: range
    ) -> tuple[frozenset[int], dict[int, dict[int, float]]]:
        """Which units have changed, by rank, and of which others they consist.

        Args:
            origins: of the units held, in time order.
            values: theirs, `[held, T, H, D]`.
            chunk: ranks of those that were written just now.
        """
        # Adding 0 makes −0 the same as 0, which sums do not tell apart.
        prints = [hash(unit.numpy().tobytes()) for unit in (values + 0).flatten(1).cpu().view(torch.uint8)]
        for rank in chunk:
            self._written[origins[rank]] = prints[rank]
            self._whose.setdefault(prints[rank], origins[rank])
        changed = frozenset(
            rank for rank, origin in enumerate(origins) if self._written[origin] != prints[rank]
        )
        made_of = {}
        for rank in changed:
            if prints[rank] in self._whose:
                made_of[rank] = {self._whose[prints[rank]]: 1.0}
            elif origins[rank] in self._blends:
                made_of[rank] = self._blends[origins[rank]]
        return changed, made_of

    def _blend(self, origins: list[int], keep: list[int], weights: list[list[float]]) -> None:
        before, self._blends = self._blends, {}
        for index, row in zip(keep, weights, strict=True):
            total: dict[int, float] = {}
            for origin, weight in zip(origins, row, strict=True):
                for part, share in before.get(origin, {origin: 1.0}).items():
                    total[part] = total.get(part, 0.0) + weight * share
            self._blends[origins[index]] = {part: x for part, x in total.items() if x > TRACE}
