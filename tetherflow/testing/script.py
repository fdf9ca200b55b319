"""Small random rollouts: what a transformer would hand a cache engine, pass by pass, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor

from tetherflow.cache import CacheEngine, CacheShape, Layout, Policy, Positions, Rotary, Unit

Pass = list[tuple[Tensor, Tensor, Tensor]]
"""Query, key and value of one pass, one triple a layer, each `[B, F*T, H, D]`."""

Material = Literal["ordinary", "constant", "alike", "zero", "huge"]
"""What keys and values are made of: `ordinary` ones vary between tokens, frames and channels, `constant` ones
not within a frame, `alike` ones not between the frames of a chunk; `huge` ones are a thousand times as large:
their squares leave float16's range."""


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
    """

    frames: int
    noisy: list[Pass]
    clean: Pass

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Chunk:
        """The same on another device or in another type."""
        return self._each(lambda x: x.to(device, dtype))

    def row(self, row: int) -> Chunk:
        """What it computes for one sample alone."""
        return self._each(lambda x: x[row : row + 1])

    def layer(self, layer: int) -> Chunk:
        """What one of its layers computes."""
        noisy = [one[layer : layer + 1] for one in self.noisy]
        return Chunk(self.frames, noisy, self.clean[layer : layer + 1])

    def without_noisy(self) -> Chunk:
        """The context pass alone."""
        return attrs.evolve(self, noisy=[])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Chunk:
        def changed(one: Pass) -> Pass:
            return [(change(query), change(key), change(value)) for query, key, value in one]

        return Chunk(self.frames, [changed(one) for one in self.noisy], changed(self.clean))


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
) -> list[Chunk]:
    """Random chunks for an engine.

    Args:
        model: sizes of the tensors.
        frames: latent frames of each chunk.
        passes: denoising passes of each chunk, repeated as needed.
        seeds: one a sample; its length is the batch B.
        material: what keys and values are made of.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [
        Chunk(
            count,
            [model.random_pass(generators, count, material) for _ in range(passes[index % len(passes)])],
            model.random_pass(generators, count, material),
        )
        for index, count in enumerate(frames)
    ]


def run(engine: CacheEngine, script: Iterable[Chunk]) -> Record:
    """Drive an engine through a script."""
    record = Record()
    for chunk in script:
        engine.begin(chunk.frames)
        for noisy in chunk.noisy:
            record.attended.extend(attend(engine, noisy))
        engine.commit()
        record.attended.extend(attend(engine, chunk.clean))
        engine.end()
        record.origins.append(engine.origins())
        record.dropped.append(list(engine.dropped))
    return record


def attend(engine: CacheEngine, tensors: Pass, order: Iterable[int] | None = None) -> list[Tensor]:
    """One pass of all layers, in any order of layers; returns what attention returned, by layer."""
    out: dict[int, Tensor] = {}
    for layer in range(len(tensors)) if order is None else order:
        out[layer] = engine.attend(layer, *tensors[layer])
    return [out[layer] for layer in sorted(out)]
