"""Drives an engine through a script of random queries, keys and values, and records what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tetherflow import Layout
from tetherflow.cache import CacheEngine, CacheShape, Positions
from tetherflow.cache.interfaces import Policy
from tetherflow_backbones.causal_wan import WanRotary

Pass = list[tuple[Tensor, Tensor, Tensor]]
"""Query, key and value of one pass, one triple a layer, each `[B, F*T, H, D]`."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a random model."""

    layers: int = 2
    heads: int = 2
    head_dim: int = 6
    grid: tuple[int, int] = (2, 2)

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def shape(self) -> CacheShape:
        return CacheShape(self.layers, self.heads, self.head_dim, self.tokens)

    def engine(
        self,
        layout: Layout,
        policy: Policy,
        *,
        batch: int = 1,
        positions: Positions = "block-relative",
        strict: bool = True,
        precision: torch.dtype = torch.float32,
        dtype: torch.dtype = torch.float32,
    ) -> CacheEngine:
        """An engine for this model."""
        rotary = WanRotary(self.head_dim, self.grid, precision)
        return CacheEngine(
            self.shape, layout, policy, rotary, batch=batch, positions=positions, strict=strict, dtype=dtype
        )

    def random_pass(self, generator: torch.Generator, batch: int, frames: int) -> Pass:
        """Random tensors of one pass; keys and values have a mean and deviation of their own."""
        shape = (3, batch, frames * self.tokens, self.heads, self.head_dim)
        made = []
        for _ in range(self.layers):
            x = torch.randn(shape, generator=generator)
            x[1:] = 0.5 + 1.5 * x[1:]
            made.append((x[0], x[1], x[2]))
        return made


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What the transformer computes in one chunk."""

    frames: int
    noisy: list[Pass]
    clean: Pass

    def row(self, row: int) -> Chunk:
        """What it computes for one sample alone."""
        return self._each(lambda taken: [tuple(x[row : row + 1] for x in triple) for triple in taken])

    def layer(self, layer: int) -> Chunk:
        """What one of its layers computes."""
        return self._each(lambda taken: taken[layer : layer + 1])

    def without_noisy(self) -> Chunk:
        """The context pass alone."""
        return dataclasses.replace(self, noisy=[])

    def _each(self, take: object) -> Chunk:
        assert callable(take)
        return Chunk(self.frames, [take(one) for one in self.noisy], take(self.clean))


Script = list[Chunk]


@dataclasses.dataclass
class Record:
    """What an engine made of a script.

    Attributes:
        attended: what attention returned, pass by pass and layer by layer.
        origins: after every chunk, `[layers, B, held]`.
        dropped: in every chunk, a tensor a layer.
    """

    attended: list[Tensor] = dataclasses.field(default_factory=list)
    origins: list[Tensor] = dataclasses.field(default_factory=list)
    dropped: list[list[Tensor]] = dataclasses.field(default_factory=list)


def write_script(
    sizes: Sizes, frames: Sequence[int], *, passes: Sequence[int] = (1,), batch: int = 1, seed: int = 0
) -> Script:
    """A script of chunks of the given frames, with `passes` (repeated as needed) denoising passes each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Chunk(
            count,
            [sizes.random_pass(generator, batch, count) for _ in range(passes[index % len(passes)])],
            sizes.random_pass(generator, batch, count),
        )
        for index, count in enumerate(frames)
    ]


def run(engine: CacheEngine, script: Iterable[Chunk]) -> Record:
    """Drive an engine through a script."""
    record = Record()
    for chunk in script:
        engine.begin(chunk.frames)
        for noisy in chunk.noisy:
            record.attended += attend(engine, noisy)
        engine.commit()
        record.attended += attend(engine, chunk.clean)
        engine.end()
        record.origins.append(engine.origins())
        record.dropped.append(engine.dropped)
    return record


def attend(engine: CacheEngine, tensors: Pass, order: Iterable[int] | None = None) -> list[Tensor]:
    """One pass of all layers; returns what attention returned, by layer."""
    out: dict[int, Tensor] = {}
    for layer in range(len(tensors)) if order is None else order:
        out[layer] = engine.attend(layer, *tensors[layer])
    return [out[layer] for layer in sorted(out)]


def contents(engine: CacheEngine) -> list[Tensor]:
    """Every layer's keys, values and the keys that attention reads, in time order."""
    result = []
    for index, store in enumerate(engine.layers):
        result += [*engine.contents(index), store.take(store.read_keys, store.order)]
    return result


def assert_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """Two lists of tensors are equal bit for bit."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert torch.equal(x, y), f"differ by {(x - y).abs().max()}"


def assert_close(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float) -> None:
    """Two lists of tensors are equal within a tolerance."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def assert_same_record(a: Record, b: Record) -> None:
    """Two runs are equal bit for bit, decisions and attention alike."""
    assert_same(a.attended, b.attended)
    assert_same(a.origins, b.origins)
    for x, y in zip(a.dropped, b.dropped, strict=True):
        assert_same(x, y)
