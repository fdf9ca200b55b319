"""Small random rollouts: what a transformer would hand a cache engine, pass by pass, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

import attrs
import torch
from torch import Tensor

from tetherflow.cache import CacheEngine, CacheShape, Event, Layout, Policy, Positions, Rotary, Unit
from tetherflow.cache.events import How

Pass = list[tuple[Tensor, Tensor, Tensor]]
"""Query, key and value of one pass, one triple a layer, each `[B, F*T, H, D]`."""

Material = Literal["ordinary", "constant", "alike", "zero", "huge"]
"""What keys and values are made of: `ordinary` ones vary between tokens, frames and channels, `constant` ones
not within a frame, `alike` ones not between the frames of a chunk; `huge` ones are a thousand times as large:
their squares leave float16's range."""


NO_SWITCHES: Final[Mapping[int, How]] = {}


@attrs.frozen
class PairRotary:
    """A rotary embedding over time alone: channel pair i of position p turns by p · 100^(−i / pairs)."""

    def phases(self, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The positions, from which `turn` computes its angles, whatever the tokens: `[F]` or `[B, F]`."""
        return positions

    def turn(self, x: Tensor, phases: Tensor) -> Tensor:
        """Rotate frames `[B, F, T, H, D]`, D even, to the positions `[F]` or `[B, F]`."""
        pairs = x.shape[-1] // 2
        speed = 100.0 ** -(torch.arange(pairs, device=x.device) / pairs)
        angle = (phases[..., None] * speed)[..., None, None, :]
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        turned = torch.stack(
            [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], dim=-1
        )
        return turned.flatten(-2).to(x.dtype)


@attrs.frozen
class Model:
    """Sizes of a model of which only the random queries, keys and values exist.

    Attributes:
        layers: transformer layers.
        heads: attention heads, H.
        head_dim: width of a head, D, even.
        grid: token rows and columns of a latent frame.
    """

    layers: int = 2
    heads: int = 2
    head_dim: int = 6
    grid: tuple[int, int] = (2, 2)

    @property
    def tokens(self) -> int:
        """Tokens of a latent frame, T."""
        return self.grid[0] * self.grid[1]

    @property
    def shape(self) -> CacheShape:
        """What it asks of a cache."""
        return CacheShape(self.layers, self.heads, self.head_dim, self.tokens, self.grid[0])

    @property
    def rotary(self) -> Rotary:
        """Its rotary embedding."""
        return PairRotary()

    def engine(
        self,
        layout: Layout,
        policy: Policy,
        *,
        batch: int = 1,
        positions: Positions = "block-relative",
        unit: Unit = "frame",
        strict: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> CacheEngine:
        """An engine for this model; see `CacheEngine` for the arguments."""
        return CacheEngine(
            self.shape,
            layout,
            policy,
            self.rotary,
            batch=batch,
            positions=positions,
            unit=unit,
            dtype=dtype,
            device=device,
            strict=strict,
        )

    def random_pass(
        self, generators: Sequence[torch.Generator], frames: int, material: Material = "ordinary"
    ) -> Pass:
        """Tensors of one pass over `frames` latent frames, a generator a sample."""
        made = []
        shape = (3, frames, self.tokens, self.heads, self.head_dim)
        for _ in range(self.layers):
            # A sample's numbers come from its own generator: they are the same beside any neighbour.
            x = torch.stack([torch.randn(shape, generator=one) for one in generators], dim=1)
            query, key, value = x.unbind()
            key, value = (_made_of(material, 0.5 + 1.5 * kept) for kept in (key, value))
            made.append((query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2)))
        return made


def _made_of(material: Material, x: Tensor) -> Tensor:
    """Turn ordinary frames `[B, F, T, H, D]` into another material."""
    match material:
        case "constant":
            return x[:, :, :1].expand_as(x)
        case "alike":
            return x[:, :1].expand_as(x)
        case "zero":
            return torch.zeros_like(x)
        case "huge":
            return 1000 * x
        case _:
            return x


@attrs.frozen(eq=False)
class Chunk:
    """What the transformer computes in one chunk.

    Attributes:
        frames: latent frames of the chunk, F.
        noisy: its denoising passes.
        clean: its context pass.
        switch: what the cache does right before it, if the prompt switches there.
        anew: at a recache, a context pass of all frames so far under the new prompt.
    """

    frames: int
    noisy: list[Pass]
    clean: Pass
    switch: How | None = None
    anew: Pass = attrs.field(factory=list)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Chunk:
        """The same on another device or in another type."""
        return self._each(lambda x: x.to(device, dtype))

    def row(self, row: int) -> Chunk:
        """What it computes for one sample alone."""
        return self._each(lambda x: x[row : row + 1])

    def layer(self, layer: int) -> Chunk:
        """What one of its layers computes."""
        return self._each_pass(lambda one: one[layer : layer + 1])

    def without_noisy(self) -> Chunk:
        """The context pass alone."""
        return attrs.evolve(self, noisy=[])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Chunk:
        def changed(one: Pass) -> Pass:
            return [(change(query), change(key), change(value)) for query, key, value in one]

        return self._each_pass(changed)

    def _each_pass(self, change: Callable[[Pass], Pass]) -> Chunk:
        noisy = [change(one) for one in self.noisy]
        return attrs.evolve(self, noisy=noisy, clean=change(self.clean), anew=change(self.anew))


@attrs.frozen(eq=False)
class Record:
    """What an engine made of a script.

    Attributes:
        attended: what attention returned, pass by pass and layer by layer, each `[B, F*T, H, D]`.
        origins: after every chunk, int64 `[layers, B, held]`.
        dropped: in every chunk, int64 `[B, n]` a layer.
    """

    attended: list[Tensor] = attrs.field(factory=list)
    origins: list[Tensor] = attrs.field(factory=list)
    dropped: list[list[Tensor]] = attrs.field(factory=list)


def write_script(
    model: Model,
    frames: Sequence[int],
    *,
    passes: Sequence[int] = (1,),
    seeds: Sequence[int] = (0,),
    material: Material = "ordinary",
    switches: Mapping[int, How] = NO_SWITCHES,
) -> list[Chunk]:
    """Random chunks for an engine.

    Args:
        model: sizes of the tensors.
        frames: latent frames of each chunk.
        passes: denoising passes of each chunk, repeated as needed.
        seeds: one a sample; its length is the batch B.
        material: what keys and values are made of.
        switches: what the cache does at a prompt switch, by the chunk right before which it comes.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def chunk(index: int, count: int) -> Chunk:
        switch = switches.get(index)
        return Chunk(
            count,
            [model.random_pass(generators, count, material) for _ in range(passes[index % len(passes)])],
            model.random_pass(generators, count, material),
            switch,
            model.random_pass(generators, sum(frames[:index]), material) if switch == "recache" else [],
        )

    return [chunk(index, count) for index, count in enumerate(frames)]


def run(engine: CacheEngine, script: Iterable[Chunk]) -> Record:
    """Drive an engine through a script."""
    record = Record()
    for chunk in script:
        if chunk.switch is not None:
            engine.switch(Event(chunk.switch, engine.frames_written))
        if chunk.anew:
            record.attended.extend(rewrite(engine, chunk.anew))
        engine.begin(chunk.frames)
        for noisy in chunk.noisy:
            record.attended.extend(attend(engine, noisy))
        engine.commit()
        record.attended.extend(attend(engine, chunk.clean))
        engine.end()
        record.origins.append(engine.origins())
        record.dropped.append(list(engine.dropped))
    return record


def rewrite(engine: CacheEngine, anew: Pass) -> list[Tensor]:
    """Write all frames of the recent region anew, one after the other; returns what attention returned.

    Args:
        engine: the engine, between chunks.
        anew: context passes of at least as many frames, of which the newest count.
    """
    tokens = engine.shape.tokens
    attended = []
    for newer in reversed(range(engine.rewritable)):
        start = anew[0][0].shape[1] - (newer + 1) * tokens
        frame = slice(start, start + tokens)
        engine.rewrite(1, newer)
        attended += attend(engine, [(q[:, frame], k[:, frame], v[:, frame]) for q, k, v in anew])
        engine.end()
    return attended


def attend(engine: CacheEngine, tensors: Pass, order: Iterable[int] | None = None) -> list[Tensor]:
    """One pass of all layers, in any order of layers; returns what attention returned, by layer."""
    out: dict[int, Tensor] = {}
    for layer in range(len(tensors)) if order is None else order:
        out[layer] = engine.attend(layer, *tensors[layer])
    return [out[layer] for layer in sorted(out)]
