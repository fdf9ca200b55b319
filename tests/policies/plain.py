"""A window in plain lists, to hold the window policies against: one layer of one sample, a frame at a time.

Who leaves, who survives a prompt switch and where each frame stands are functions of origins, which a test
writes as the policy's paper does; attention is written out in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from tests.cache.drive import Sizes
from tests.cache.oracle import Frame, dense_attention, rotate
from tetherflow import Event
from tetherflow.cache import CacheEngine
from tetherflow.testing.script import Chunk, Record, run

MODEL = Sizes(layers=2, heads=2, head_dim=12, grid=(2, 2))

Switches = Mapping[int, Event]
"""Prompt switches by the chunk before which they come."""


@attrs.frozen
class Plain:
    """What a policy says, in lists.

    Attributes:
        leave: origins that leave, of those held, for so many new frames.
        flush: origins that survive a switch, of those held.
        place: positions of the origins held, of which the last so many are the chunk's.
    """

    leave: Callable[[list[int], int], list[int]]
    flush: Callable[[list[int], Event], list[int]]
    place: Callable[[list[int], int, Event | None], list[int]]

    def run(self, script: Sequence[Chunk], switches: Switches) -> tuple[list[Tensor], list[list[int]]]:
        """What attention returns in every pass, `[L, H, D]`, and the origins held after every chunk."""
        held: list[Frame] = []
        attended, origins = [], []
        written = 0
        for index, chunk in enumerate(script):
            event = switches.get(index)
            if event:
                stay = self.flush([frame.origin for frame in held], event)
                held = [frame for frame in held if frame.origin in stay]
            gone = self.leave([frame.origin for frame in held], chunk.frames)
            held = [frame for frame in held if frame.origin not in gone]
            for tensors in [*chunk.noisy, chunk.clean]:
                query, key, value = (x[0].unflatten(0, (-1, MODEL.tokens)).double() for x in tensors[0])
                new = [Frame(written + i, key[i], value[i]) for i in range(chunk.frames)]
                attended.append(self.read([*held, *new], query, event))
            held += new
            written += chunk.frames
            origins.append([frame.origin for frame in held])
        return attended, origins

    def read(self, frames: list[Frame], query: Tensor, event: Event | None) -> Tensor:
        """Attend from a chunk's queries `[F, T, H, D]` to all frames."""
        positions = self.place([frame.origin for frame in frames], len(query), event)
        keys = [rotate(frame.key, at, MODEL.grid) for frame, at in zip(frames, positions, strict=True)]
        queries = [rotate(x, at, MODEL.grid) for x, at in zip(query, positions[-len(query) :], strict=True)]
        return dense_attention(torch.cat(queries), torch.cat(keys), torch.cat([f.value for f in frames]))


def oldest_past(sink: int, budget: int) -> Callable[[list[int], int], list[int]]:
    """Who leaves a window of `budget` frames with a sink: the oldest that are not of the sink."""
    return lambda held, incoming: held[sink:][: max(0, len(held) + incoming - budget)]


def run_with(engine: CacheEngine, script: Sequence[Chunk], switches: Switches) -> Record:
    """Drive an engine through a script with prompt switches."""
    record = Record()
    for index, chunk in enumerate(script):
        if index in switches:
            engine.switch(switches[index])
        one = run(engine, [chunk])
        record.attended.extend(one.attended)
        record.origins.extend(one.origins)
    return record


def assert_is(engine: CacheEngine, script: Sequence[Chunk], plain: Plain, switches: Switches) -> None:
    """Every layer and sample of an engine attends to the same frames at the same positions as the lists."""
    record = run_with(engine, script, switches)
    for layer in range(MODEL.layers):
        for row in range(engine.batch):
            alone = [chunk.row(row).layer(layer) for chunk in script]
            attended, origins = plain.run(alone, switches)
            assert [held[layer, row].tolist() for held in record.origins] == origins
            for found, wanted in zip(record.attended[layer :: MODEL.layers], attended, strict=True):
                torch.testing.assert_close(found[row].double(), wanted, atol=2e-5, rtol=2e-5)
