"""Policies written out slowly: a cache as a list of entries, for one layer of one sample, in float64.

A test writes a `Slow` from its policy's specification, in a few lines and without looking at the plugin, and
holds the engine's attention to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.cache.drive import Sizes, assert_close
from tests.cache.oracle import Grid, dense_attention, rotate
from tetherflow import Layout
from tetherflow.cache import Positions, Unit
from tetherflow.pipeline import Pipeline
from tetherflow.testing import run, write_script

NEAR = 2e-5
"""How far the engine's float32 may stray from float64."""


@dataclasses.dataclass(eq=False)
class Entry:
    """A unit's unrotated key and value `[T, H, D]`, and its frame's index in the video."""

    frame: int
    key: Tensor
    value: Tensor


class Slow:
    """A policy over a list of entries; a subclass says what becomes of them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.frame = 0

    def begin(self, frames: int) -> None:
        """Make room for the chunk."""

    def positions(self, frames: int) -> list[float]:
        """Where the entries stand, and then the chunk's frames."""
        return list(range(len(self.entries) + frames))

    def commit(self, chunk: Sequence[Entry]) -> None:
        """Take in the chunk, after its context pass has read."""
        self.entries += chunk

    def attend(self, query: Tensor, chunk: Sequence[Entry], grid: Grid) -> Tensor:
        """Dense attention of the chunk's queries `[F, T, H, D]`."""
        view = [*self.entries, *chunk]
        places = self.positions(len(chunk))
        assert len(places) == len(view)
        keys = [rotate(entry.key, at, grid) for entry, at in zip(view, places, strict=True)]
        now = places[len(self.entries) :]
        queries = [rotate(q, at, grid) for q, at in zip(query, now, strict=True)]
        return dense_attention(
            torch.cat(queries), torch.cat(keys), torch.cat([entry.value for entry in view])
        )


def hold_to(
    slow: type[Slow],
    policy: Pipeline,
    layout: Layout,
    frames: Sequence[int],
    *,
    positions: Positions = "block-relative",
    unit: Unit = "frame",
    sizes: Sizes = Sizes(layers=2, heads=2, head_dim=12, grid=(2, 3)),  # noqa: B008  # it is frozen
) -> None:
    """Run a policy through the engine, and hold every pass of every layer of two samples to the slow one.

    Args:
        slow: the policy, written out.
        policy: the policy, made of plugins.
        layout: the regions.
        frames: latent frames of each chunk.
        positions: key positions.
        unit: the engine's units.
        sizes: of the random model.
    """
    engine = sizes.engine(layout, policy, batch=2, positions=positions, unit=unit)
    script = write_script(sizes, frames, seeds=[3, 4])
    found = run(engine, script).attended
    expected = []
    cells = [[slow() for _ in range(2)] for _ in range(sizes.layers)]
    for chunk in script:
        for row in [cell for layer in cells for cell in layer]:
            row.begin(chunk.frames)
        for one in [*chunk.noisy, chunk.clean]:
            for layer, triple in enumerate(one):
                out = []
                for row, cell in enumerate(cells[layer]):
                    q, k, v = (x[row].double().unflatten(0, (chunk.frames, -1)) for x in triple)
                    entries = [Entry(cell.frame + i, k[i], v[i]) for i in range(chunk.frames)]
                    out.append(cell.attend(q, entries, sizes.grid))
                    if one is chunk.clean:
                        cell.commit(entries)
                        cell.frame += chunk.frames
                expected.append(torch.stack(out).float())
    assert_close(found, expected, NEAR)
