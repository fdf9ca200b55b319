"""Deep Forcing against its paper's formulas over single tokens in plain lists."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.cache.oracle import angles, dense_attention
from tests.policies.plain import MODEL, run_with
from tetherflow import Candidates, Event, Layout
from tetherflow.cache.interfaces import Unit
from tetherflow.errors import LayoutError, PipelineError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import write_script
from tetherflow.testing.script import Chunk, run
from tetherflow_policies.deep_forcing import CappedTopM, DeepForcing, Participation
from tetherflow_policies.recall_window import RecallWindow


@dataclasses.dataclass(eq=False)
class Token:
    """One token's unrotated key and value `[H, D]`, its frame and place in it, and how often it was kept."""

    frame: int
    part: int
    key: Tensor
    value: Tensor
    kept: int = 0


def turn(x: Tensor, position: int, part: int) -> Tensor:
    """Rotate one token `[H, D]`."""
    angle = angles(position, MODEL.head_dim, MODEL.grid)[part]
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def attend(held: Sequence[Token], query: Tensor) -> Tensor:
    """From queries `[F, T, H, D]` at the tail to tokens at their ranks in frames."""
    size = MODEL.tokens
    keys = [turn(token.key, rank // size, token.part) for rank, token in enumerate(held)]
    first = len(held) // size - len(query)
    queries = [turn(x, first + frame, part) for frame, xs in enumerate(query) for part, x in enumerate(xs)]
    return dense_attention(torch.stack(queries), torch.stack(keys), torch.stack([t.value for t in held]))


def compressed(loose: list[Token], query: Tensor, capacity: int, reuse: int) -> list[Token]:
    """The tokens of the highest participation, worn ones last; their counts go up."""
    heads, width = query.shape

    def participation(token: Token) -> float:
        return float((query * turn(token.key, token.frame, token.part)).sum()) / (math.sqrt(width) * heads)

    best = sorted(loose, key=lambda token: (token.kept >= reuse, -participation(token)))[:capacity]
    for token in best:
        token.kept += 1
    return sorted(best, key=lambda token: (token.frame, token.part))


def in_lists(
    script: Sequence[Chunk], layout: Layout, recent: int, window: int, reuse: int, flushed: int
) -> tuple[list[Tensor], list[list[int]]]:
    """What attention returns in every pass, and the serial numbers held after every chunk."""
    size = MODEL.tokens
    held: list[Token] = []
    clean: list[Tensor] = []  # every frame's rotated queries, summed
    attended, serials, written = [], [], 0
    for index, chunk in enumerate(script):
        if index == flushed:
            held = held[: layout.sink * size] + held[layout.sink * size :][-2 * size :]
        full = len(held) + chunk.frames * size > layout.budget * size
        for tensors in [*chunk.noisy, chunk.clean]:
            query, key, value = (x[0].unflatten(0, (-1, size)).double() for x in tensors[0])
            new = [
                Token(written + frame, part, key[frame, part], value[frame, part])
                for frame in range(chunk.frames)
                for part in range(size)
            ]
            sums = [
                torch.stack([turn(x, written + frame, part) for part, x in enumerate(xs)]).sum(dim=0)
                for frame, xs in enumerate(query)
            ]
            if full:
                end = len(held) - max(0, recent - chunk.frames) * size
                sink, loose, newest = (
                    held[: layout.sink * size],
                    held[layout.sink * size : end],
                    held[end:],
                )
                pooled = torch.stack([*clean, *sums][-window:]).sum(dim=0)
                held = sink + compressed(loose, pooled, layout.memory * size, reuse) + newest
                full = False
            attended.append(attend([*held, *new], query))
        held += new
        clean += sums
        written += chunk.frames
        serials.append([token.frame * size + token.part for token in held])
    return attended, serials


def deep_forcing(recent: int = 4, window: int = 4, reuse: int = 7) -> Pipeline:
    return Pipeline(
        DeepForcing(DeepForcing.Options(recent=recent), name="deep-forcing"),
        [Participation(Participation.Options(window=window), name="participation")],
        CappedTopM(CappedTopM.Options(reuse=reuse), name="capped-top-m"),
    )


@settings(max_examples=25)
@given(
    sink=st.integers(0, 2),
    memory=st.integers(1, 2),
    recent=st.integers(1, 3),
    spare=st.integers(0, 2),
    window=st.integers(1, 4),
    reuse=st.integers(1, 3),
    size=st.integers(1, 2),
    passes=st.integers(0, 2),
    flushed=st.integers(1, 15),
    seed=st.integers(0, 100),
)
def test_is_the_lists_of_tokens(
    sink: int,
    memory: int,
    recent: int,
    spare: int,
    window: int,
    reuse: int,
    size: int,
    passes: int,
    flushed: int,
    seed: int,
) -> None:
    layout = Layout(sink, memory, max(recent, size) + spare)
    engine = MODEL.engine(layout, deep_forcing(recent, window, reuse), batch=2, unit="token")
    script = write_script(MODEL, [size] * 10, passes=[passes], seeds=[seed, seed + 1])
    record = run_with(engine, script, {flushed: Event("flush", flushed * size)})
    for layer in range(MODEL.layers):
        for row in range(2):
            alone = [chunk.row(row).layer(layer) for chunk in script]
            attended, serials = in_lists(alone, layout, recent, window, reuse, flushed)
            assert [held[layer, row].tolist() for held in record.origins] == serials
            for found, wanted in zip(record.attended[layer :: MODEL.layers], attended, strict=True):
                torch.testing.assert_close(found[row].double(), wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("unit", ["frame", "token"])
def test_occupancy_is_the_published_one(unit: Unit) -> None:
    """21, compressed to 16 with the chunk, 19, 16, 19, …; the sink and the newest four are whole frames."""
    engine = MODEL.engine(Layout(10, 2, 9), deep_forcing(), unit=unit)
    parts = engine.layout.parts
    record = run(engine, write_script(MODEL, [3] * 12))
    assert [held.shape[2] / parts for held in record.origins] == [*range(3, 22, 3), 16, 19, 16, 19, 16]
    held = record.origins[-1][0, 0].tolist()
    assert held[: 10 * parts] == list(range(10 * parts))
    assert held[12 * parts :] == list(range(32 * parts, 36 * parts))


def test_what_a_flush_leaves_of_memory_does_not_count_as_recent() -> None:
    """Although recent has room for it: of the two frames that are left it holds the newest alone."""
    engine = MODEL.engine(Layout(0, 2, 2), deep_forcing(recent=1), positions="absolute")
    run(engine, write_script(MODEL, [2, 2, 1]))
    assert (len(engine.regions.memory), len(engine.regions.recent)) == (2, 1)
    engine.switch(Event("flush", 5))
    assert engine.held == 2
    assert (len(engine.regions.memory), len(engine.regions.recent)) == (1, 1)
    assert engine.origins()[..., -1].eq(4).all()


def shown(selected: list[float], capacity: int) -> Candidates:
    keys = torch.zeros(1, len(selected), 1, 1, 2)
    return Candidates(
        layer=0,
        chunk=0,
        capacity=capacity,
        residents=capacity,
        origins=torch.arange(len(selected))[None],
        metadata={"selected": torch.tensor([selected])},
        mean_keys=keys[:, :, 0],
        read_keys=lambda: keys,
        read_values=lambda: keys,
    )


def test_worn_units_come_last_but_fill_up() -> None:
    selector = CappedTopM()
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    selection = selector.select(shown([7, 0, 6, 0], 2), score)
    assert selection.keep.tolist() == [[1, 2]]
    assert selection.metadata["selected"].tolist() == [[1, 7]]
    assert selector.select(shown([7, 9, 7, 0], 2), score).keep.tolist() == [[3, 0]]


def test_clean_queries_count_as_memory() -> None:
    layout = Layout(1, 1, 4)
    engine = MODEL.engine(layout, deep_forcing(window=4), batch=2, unit="token")
    assert engine.side_nbytes == MODEL.layers * 2 * 4 * MODEL.heads * MODEL.head_dim * 4


def test_regions_that_do_not_suit_are_refused() -> None:
    with pytest.raises(LayoutError, match="'deep-forcing' compresses into memory, but the regions give it 0"):
        DeepForcing().check_layout(Layout(10, 0, 9))
    with pytest.raises(
        LayoutError, match="leaves 4 recent frames uncompressed, but the regions give recent 3"
    ):
        DeepForcing().check_layout(Layout(10, 2, 3))


def test_participation_needs_queries() -> None:
    begin = RecallWindow(RecallWindow.Options(when="begin"), name="recall-window")
    with pytest.raises(PipelineError, match="'participation' needs a pass's queries"):
        Pipeline(begin, [Participation(name="participation")], CappedTopM(name="capped-top-m"))


def test_defaults_are_the_published_ones() -> None:
    assert DeepForcing().options.recent == 4
    assert Participation().options.window == 4
    assert CappedTopM().options.reuse == 7
