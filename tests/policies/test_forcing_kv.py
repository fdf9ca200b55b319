"""Forcing-KV against its specification, written out over a list of bands."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.cache.drive import Sizes, assert_close
from tests.cache.oracle import Grid, dense_attention, rotate
from tests.policies.slow import NEAR, Entry
from tetherflow import Layout
from tetherflow.errors import LayoutError, PipelineError, StageError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import run, write_script
from tetherflow.testing.script import Chunk
from tetherflow_policies.forcing_kv import ForcingKV
from tetherflow_policies.recall_window import RecallWindow

SIZES = Sizes(layers=4, heads=3, head_dim=6, grid=(4, 2))
ROWS = 2
"""Of a band: a frame of 4 rows has 2."""
STATIC = ((), (0,), (1, 2), (0, 1, 2))
LAYOUT = Layout(1, 1, 4)

Band = tuple[int, int]
"""A frame's index and a band's."""


def rotated(entry: Entry, grid: Grid) -> Tensor:
    return rotate(entry.key, entry.frame, grid)


class Layer:
    """One layer of one sample: whole frames by index, and which bands of which are in memory."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.static = set(STATIC[layer])
        self.frames: dict[int, Entry] = {}
        self.bands: list[Band] = []
        self.written = 0

    def change(self, frame: int, band: int) -> float:
        """How unlike the next frame a band is, over all dynamic heads."""
        rows = slice(band * ROWS * SIZES.grid[1], (band + 1) * ROWS * SIZES.grid[1])
        dynamic = [head for head in range(SIZES.heads) if head not in self.static]
        here, after = (
            rotated(self.frames[t], SIZES.grid)[rows, dynamic].flatten(1) for t in (frame, frame + 1)
        )
        return -float(functional.cosine_similarity(here, after, dim=1).mean())

    def choose(self, frames: int) -> list[Band]:
        """The dynamic slot for the next chunk: the bands that changed most of the last but one frames."""
        candidates = [
            (t, band) for t in range(self.written - frames - 1, self.written - 1) for band in range(2)
        ]
        return sorted(sorted(candidates, key=lambda each: -self.change(*each))[:2])

    def attend(self, chunk_index: int, query: Tensor, chunk: Sequence[Entry]) -> Tensor:
        """Dense attention, head by head."""
        last = [self.frames[self.written - 1]] if self.written > 1 else []
        few = ([self.frames[0]] if self.written else []) + last
        queries = torch.cat(
            [rotate(q, entry.frame, SIZES.grid) for q, entry in zip(query, chunk, strict=True)]
        )
        out = []
        for head in range(SIZES.heads):
            tokens = [(rotated(entry, SIZES.grid), entry.value) for entry in [*few, *chunk]]
            if chunk_index > 1 and head not in self.static:
                for t, band in self.bands:
                    rows = slice(band * ROWS * SIZES.grid[1], (band + 1) * ROWS * SIZES.grid[1])
                    entry = self.frames[t]
                    tokens.append((rotated(entry, SIZES.grid)[rows], entry.value[rows]))
            keys, values = (torch.cat(part)[:, head : head + 1] for part in zip(*tokens, strict=True))
            out.append(dense_attention(queries[:, head : head + 1], keys, values))
        return torch.cat(out, dim=1)


def slowly(script: Sequence[Chunk], row: int) -> list[Tensor]:
    """What each layer attends to, pass by pass, for one sample; layer 1 decides for those above."""
    layers = [Layer(layer) for layer in range(SIZES.layers)]
    out = []
    for index, chunk in enumerate(script):
        if index > 1:
            layers[0].bands = layers[0].choose(chunk.frames)
            shared = layers[1].choose(chunk.frames)
            for layer in layers[1:]:
                layer.bands = shared
        for one in [*chunk.noisy, chunk.clean]:
            for layer, triple in zip(layers, one, strict=True):
                q, k, v = (x[row].double().unflatten(0, (chunk.frames, -1)) for x in triple)
                entries = [Entry(layer.written + i, k[i], v[i]) for i in range(chunk.frames)]
                out.append(layer.attend(index, q, entries))
                if one is chunk.clean:
                    layer.frames |= {entry.frame: entry for entry in entries}
                    layer.written += chunk.frames
    return out


def forcing_kv(**options: object) -> Pipeline:
    evict = RecallWindow(RecallWindow.Options(when="begin"), name="recall-window")
    given = {"static_heads": STATIC, **options}
    return Pipeline(evict, select=ForcingKV(ForcingKV.Options.model_validate(given), name="forcing-kv"))


def test_rollout_is_the_specified_one() -> None:
    engine = SIZES.engine(LAYOUT, forcing_kv(), batch=2, positions="absolute", unit=ROWS)
    script = write_script(SIZES, [3] * 7, seeds=[5, 6])
    found = run(engine, script).attended
    rows = [slowly(script, row) for row in range(2)]
    assert_close(found, [torch.stack(pair).float() for pair in zip(*rows, strict=True)], NEAR)


def test_layers_above_share_what_layer_1_decides() -> None:
    engine = SIZES.engine(LAYOUT, forcing_kv(), positions="absolute", unit=ROWS)
    run(engine, write_script(SIZES, [3] * 6))
    memory = engine.memory_origins()
    assert torch.equal(memory[1], memory[2])
    assert torch.equal(memory[1], memory[3])


def test_recent_without_a_frame_before_the_chunk_is_refused() -> None:
    with pytest.raises(LayoutError, match="reads the last frame before the chunk; make recent 2 or more"):
        SIZES.engine(Layout(1, 1, 1), forcing_kv())


def test_static_head_that_is_not_there_is_refused() -> None:
    engine = SIZES.engine(LAYOUT, forcing_kv(static_heads=((), (), (7,))), unit=ROWS)
    with pytest.raises(StageError, match="no static head 7 in layer 2, which has 3"):
        run(engine, write_script(SIZES, [3] * 4))


def test_other_moments_are_refused() -> None:
    """By then, what has been evicted stands no more where it compares it."""
    with pytest.raises(
        PipelineError, match=r"'ForcingKV' decides at 'begin', .*'RecallWindow' asks at 'commit'"
    ):
        Pipeline(RecallWindow(), select=ForcingKV())
