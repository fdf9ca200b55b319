"""Hypothesis strategies: regions, rollouts, and what the engine shows to a stage.

What a stage is shown is not made up here: a small engine is driven through a random rollout, and what it
handed to its policy last is the example. So it is what a plugin meets, whatever the engine comes to show.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import hypothesis.strategies as st
import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from tetherflow.cache import (
    CacheEngine,
    Candidates,
    Draft,
    Layout,
    Policy,
    Positions,
    Ranks,
    Slots,
    Statistics,
    Unit,
)
from tetherflow.cache.events import How
from tetherflow.cache.reading import LiveReader
from tetherflow.errors import LayoutError
from tetherflow.hookspecs import hookimpl
from tetherflow.pipeline import Pipeline
from tetherflow.stages import Editor
from tetherflow.testing.companions import Best, Scatter, Spread
from tetherflow.testing.script import Chunk, Material, Model, run, write_script
from tetherflow.testing.watch import Watch

Shown = TypeVar("Shown")

SMALL_REGIONS = [
    Layout(sink, memory, recent, bank)
    for bank in range(3)
    for sink in range(4)
    for memory in range(5)
    for recent in range(1, 5)
]
"""Regions small enough that a few chunks fill them."""

Setup = tuple[Layout, Positions, Unit]
"""Regions, key positions and unit of a cache."""

BLOCK_RELATIVE: SearchStrategy[Positions] = st.just("block-relative")
FRAMES: SearchStrategy[Unit] = st.just("frame")

SMALL_MODELS = [Model(), Model(layers=1, heads=1, head_dim=2, grid=(1, 2)), Model(head_dim=12, grid=(2, 3))]


@attrs.frozen
class Rollout:
    """A random rollout on a small model: all that an engine meets, from a few numbers.

    Attributes:
        layout: the regions.
        frames: latent frames of each chunk.
        seeds: one a sample; a sample's tensors depend on its seed alone, whatever its neighbours.
        passes: denoising passes of each chunk, repeated as needed.
        positions: key positions.
        unit: what is kept or dropped as a whole.
        switches: prompt switches: the chunk right before which each comes, and what the cache does.
        model: sizes of the tensors.
        material: what keys and values are made of.
        dtype: type of keys and values.
        device: where they live.
    """

    layout: Layout
    frames: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    passes: tuple[int, ...] = (1,)
    positions: Positions = "block-relative"
    unit: Unit = "frame"
    switches: tuple[tuple[int, How], ...] = ()
    model: Model = attrs.field(factory=Model)
    material: Material = "ordinary"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def engine(self, policy: Policy, *, strict: bool = True) -> CacheEngine:
        """A new engine for this rollout."""
        return self.model.engine(
            self.layout,
            policy,
            batch=len(self.seeds),
            positions=self.positions,
            unit=self.unit,
            strict=strict,
            dtype=self.dtype,
            device=self.device,
        )

    def script(self) -> list[Chunk]:
        """What the model computes, chunk by chunk; the same at every call."""
        chunks = write_script(
            self.model,
            self.frames,
            passes=self.passes,
            seeds=self.seeds,
            material=self.material,
            switches=dict(self.switches),
        )
        return [chunk.to(self.device, self.dtype) for chunk in chunks]


def regions(suits: Callable[[Layout], bool] = lambda layout: not layout.bank) -> SearchStrategy[Layout]:
    """Small regions.

    Args:
        suits: whether to draw given ones; all are asked at once, so that nothing drawn is thrown away. Those
            with a bank, which few policies take, are left out if it is omitted.

    Raises:
        LayoutError: None of the small ones suits.
    """
    suitable = [layout for layout in SMALL_REGIONS if suits(layout)]
    if not suitable:
        raise LayoutError(
            f"none of the {len(SMALL_REGIONS)} small regions suits: sinks of 0 to 3 frames, banks of 0 to 2, "
            "memories of 0 to 4, recents of 1 to 4"
        )
    return st.sampled_from(suitable)


@st.composite
def rollouts(
    draw: st.DrawFn,
    setups: SearchStrategy[Setup] | None = None,
    *,
    batch: tuple[int, int] = (1, 3),
    materials: Sequence[Material] = ("ordinary",),
    models: Sequence[Model] = SMALL_MODELS,
    chunk: int | None = None,
    switches: Sequence[How] = (),
) -> Rollout:
    """Rollouts that fill the cache and go on for a few chunks more, as that is where policies act.

    Args:
        draw: what hypothesis draws with.
        setups: regions, key positions and unit; small regions of frames at block-relative positions if
            omitted.
        batch: fewest and most samples.
        materials: what keys and values may be made of.
        models: sizes to choose from.
        chunk: latent frames of every chunk; any that fit if omitted.
        switches: what the cache may do at prompt switches, which come once it is full; none if omitted.
    """
    plain = st.tuples(regions(), BLOCK_RELATIVE, FRAMES)
    layout, positions, unit = draw(plain if setups is None else setups)
    full = chunk or layout.recent
    sizes = st.integers(1, layout.recent) if chunk is None else st.just(chunk)
    more = draw(st.lists(sizes, min_size=2, max_size=6))
    seeds = draw(st.lists(st.integers(0, 10_000), min_size=batch[0], max_size=batch[1], unique=True))
    filling = -(-layout.budget // full)
    # Before every other chunk, and never the first: the full cache, too, is to be met.
    switched = [draw(st.sampled_from([None] * len(switches) + [*switches])) for _ in more[1:] if switches]
    return Rollout(
        layout=layout,
        frames=(full,) * filling + tuple(more),
        seeds=tuple(seeds),
        passes=tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))),
        positions=positions,
        unit=unit,
        switches=tuple((filling + 1 + i, how) for i, how in enumerate(switched) if how is not None),
        model=draw(st.sampled_from(models)),
        material=draw(st.sampled_from(materials)),
    )


def slots(**options: Any) -> SearchStrategy[Slots]:
    """Layers as chunks begin, given to `evict`; takes the options of `rollouts`."""
    return _shown("evict", "slots", **options)


def candidates(**options: Any) -> SearchStrategy[Candidates]:
    """Units that compete for memory, given to `score` and `select`; takes the options of `rollouts`."""
    return _shown("score", "candidates", **options)


def drafts(**options: Any) -> SearchStrategy[Draft]:
    """Newcomers' drafts, given to `edit`; takes the options of `rollouts`."""
    return _shown("edit", "draft", **options)


class _Idle(Editor):
    """Edits nothing, so that the engine shows its drafts."""

    @hookimpl
    def edit(self) -> None:
        """Leave the draft as it is."""


@st.composite
def _shown(draw: st.DrawFn, /, hook: str, argument: str, **options: Any) -> Any:
    """The last that an engine showed to a hook in a random rollout of a policy that recalls."""
    recalling = regions(lambda layout: layout.memory > 0 and not layout.bank)
    setups = st.tuples(recalling, BLOCK_RELATIVE, FRAMES)
    return last_shown(draw(rollouts(setups, **options)), hook, argument)


def last_shown(rollout: Rollout, hook: str, argument: str) -> Any:
    """What an engine last showed to a hook in a rollout of a policy that evicts by lot and recalls.

    Args:
        rollout: the rollout; its regions have a memory.
        hook: `evict`, `score`, `select` or `edit`.
        argument: name of the hook's argument.
    """
    policy = Pipeline(Scatter("memory"), [Spread()], Best(), [_Idle()])
    kept: dict[str, Any] = {}
    Watch(
        policy,
        before=lambda call: (
            kept.__setitem__(call.stage, detached(call.given[argument])) if call.stage == hook else None
        ),
    )
    run(rollout.engine(policy), rollout.script())
    return kept[hook]


@attrs.frozen(eq=False)
class CopiedReader:
    """What a live reader reads, copied: it stays as it is when the engine goes on.

    Attributes:
        units: keys and values of all units `[B, n, T, heads, head_dim]`.
        turn: rotates.
    """

    units: tuple[Tensor, Tensor]
    turn: Callable[[Tensor, Tensor, Tensor], Tensor]

    @classmethod
    def of(cls, live: LiveReader) -> CopiedReader:
        """A copy of what a reader reads now; keys that it would refuse to read are values instead."""
        ranks = range(live.held)
        values = live.values(ranks)
        return cls((live.keys(ranks) if live.raw else values, values), live.rotate)

    def like(self) -> Tensor:
        """A tensor without elements, of units' shape, type and device."""
        return self.units[0][0, :0]

    def keys(self, ranks: Ranks) -> Tensor:
        """Unrotated keys."""
        return _units_at(self.units[0], ranks)

    def stored_keys(self) -> tuple[Tensor, Tensor]:
        """Unrotated keys, the newest first, and each unit's place: an engine's are in any order, too."""
        keys = self.units[0].flip(1)
        places = torch.arange(keys.shape[1], device=keys.device).flip(0)
        return keys, places.expand(keys.shape[0], -1)

    def values(self, ranks: Ranks) -> Tensor:
        """Values."""
        return _units_at(self.units[1], ranks)

    def statistics(self, ranks: Ranks) -> tuple[Statistics, Statistics]:
        """Key and value statistics of each unit."""
        return Statistics.of(self.keys(ranks)), Statistics.of(self.values(ranks))

    def rotate(self, x: Tensor, positions: Tensor, parts: Tensor) -> Tensor:
        """Rotate units to positions."""
        return self.turn(x, positions, parts)


def _units_at(units: Tensor, ranks: Ranks) -> Tensor:
    if isinstance(ranks, Tensor):
        return units[torch.arange(len(units), device=units.device)[:, None], ranks]
    return units[:, list(ranks)]


def detached(shown: Any) -> Any:
    """A copy of stage data that stays as it is when the engine goes on; what reads the cache reads it now."""
    return converted(shown, lambda x: x.clone())


def converted(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Stage data with every tensor changed; what reads the cache then gives what it reads now."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, LiveReader):
        value = CopiedReader.of(value)
    if attrs.has(type(value)):
        fields = [field for field in attrs.fields(type(value)) if field.init]
        parts = {str(field.alias): converted(getattr(value, field.name), change) for field in fields}
        return attrs.evolve(value, **parts)
    if isinstance(value, tuple):
        return tuple(converted(one, change) for one in value)
    if isinstance(value, dict):
        return {name: converted(one, change) for name, one in value.items()}
    if callable(value) and not inspect.signature(value).parameters:
        read = converted(value(), change)
        return lambda: read
    return value
