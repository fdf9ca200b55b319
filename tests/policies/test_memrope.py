"""MemRoPE's memories against moving averages written out frame by frame and token by token."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError
from torch import Tensor

from tetherflow import Bank, Layout, Units
from tetherflow.errors import LayoutError
from tetherflow.pipeline import Pipeline
from tetherflow.testing import Model, run, write_script
from tetherflow_policies.memrope import MemRope
from tetherflow_policies.sink_window import SinkWindow

MODES = [(True, False), (False, False), (False, True)]
"""Pooled over tokens or not, adaptive or not."""


def memrope(pool_tokens: bool = True, adaptive: bool = False) -> MemRope:
    return MemRope(MemRope.Options(pool_tokens=pool_tokens, adaptive=adaptive), name="memrope")


def reference(
    memories: list[tuple[Tensor, Tensor]] | None,
    leaving: list[tuple[Tensor, Tensor]],
    pool_tokens: bool,
    adaptive: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Long and short memory, key and value `[T, H, D]` each, once frames have left; None before any has."""
    mean = []
    for kind in (0, 1):
        total = sum(frame[kind].double() for frame in leaving) / len(leaving)
        assert isinstance(total, Tensor)
        mean.append(total.mean(dim=0).expand_as(total) if pool_tokens else total)
    if memories is None:
        return [(mean[0], mean[1])] * 2
    motion = [
        sum(float((mean[0][t, h] - memories[1][0][t, h]).norm()) for h in range(mean[0].shape[1]))
        for t in range(len(mean[0]))
    ]
    result = []
    for which, memory in enumerate(memories):
        rates = [[0.01, 0.1][which]] * len(motion)
        if which == 1 and adaptive:
            rates = [0.1 * (0.1 + (5 - 0.1) * moved / max(motion)) for moved in motion]
        new = [
            torch.stack([r * e[t] + (1 - r) * old[t] for t, r in enumerate(rates)])
            for e, old in zip(mean, memory, strict=True)
        ]
        result.append((new[0], new[1]))
    return result


@settings(max_examples=30)
@given(
    mode=st.sampled_from(MODES),
    frames=st.lists(st.integers(1, 3), min_size=5, max_size=9),
    batch=st.integers(1, 2),
    sink=st.integers(0, 2),
    recent=st.integers(3, 5),
    unit=st.sampled_from(["frame", "token", 1]),
    seed=st.integers(0, 1000),
)
def test_memories_are_the_moving_averages(
    mode: tuple[bool, bool],
    frames: list[int],
    batch: int,
    sink: int,
    recent: int,
    unit: str | int,
    seed: int,
) -> None:
    """In a whole rollout, whatever the unit: the bank is the average of all that has left, in both rates."""
    model = Model(layers=2, grid=(2, 2))
    layout = Layout(sink, 0, recent, bank=2)
    policy = Pipeline(SinkWindow(name="sink-window"), merge=memrope(*mode))
    engine = model.engine(layout, policy, batch=batch, unit=unit)  # type: ignore[arg-type]
    script = write_script(model, frames, seeds=[seed + row for row in range(batch)])
    run(engine, script)
    for layer in range(model.layers):
        keys, values = (
            x.unflatten(1, (-1, engine.layout.parts)).flatten(2, 3) for x in engine.contents(layer)
        )
        for row in range(batch):
            video = [
                frame
                for chunk in script
                for frame in zip(
                    *(x[row].unflatten(0, (-1, model.tokens)) for x in chunk.clean[layer][1:]), strict=True
                )
            ]
            memories, first, held = None, sink + 2, 0
            for count in frames:
                held += count
                if (leave := held - layout.budget) > 0:
                    memories = reference(memories, video[first : first + leave], *mode)
                    first, held = first + leave, layout.budget
            wanted = memories or video[sink : sink + 2]
            for which, (key, value) in enumerate(wanted[: held - sink]):
                torch.testing.assert_close(keys[row, sink + which], key.float(), atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(values[row, sink + which], value.float(), atol=1e-5, rtol=1e-5)


def bank(memories: Tensor, leaving: Tensor, rolls: float) -> Bank:
    """Both memories `[2, T, H, D]` of a single sample, and the frames that leave."""
    return Bank(
        layer=0,
        chunk=9,
        layout=Layout(0, 0, 3, bank=2),
        origins=torch.arange(2)[None],
        keys=memories[None].clone(),
        values=memories[None].clone(),
        metadata={"rolls": torch.full((1, 2), rolls)},
        leaving=Units(
            origins=2 + torch.arange(len(leaving))[None],
            keys=leaving[None],
            values=leaving[None],
            metadata={},
        ),
    )


@pytest.mark.parametrize(("pool_tokens", "adaptive"), MODES)
def test_the_first_that_leave_become_both_memories(pool_tokens: bool, adaptive: bool) -> None:
    """What held the bank's place before is lost, as in the published code."""
    given_bank = bank(torch.full((2, 4, 1, 2), 100.0), torch.randn(3, 4, 1, 2), rolls=0)
    memrope(pool_tokens, adaptive).merge(given_bank)
    mean = given_bank.leaving.keys[0].mean(dim=0)
    mean = mean.mean(dim=0).expand_as(mean) if pool_tokens else mean
    torch.testing.assert_close(given_bank.keys[0], torch.stack([mean, mean]))
    assert given_bank.metadata["rolls"].tolist() == [[1, 1]]


def test_default_makes_every_token_of_a_memory_the_same() -> None:
    given_bank = bank(torch.zeros(2, 4, 1, 2), torch.randn(3, 4, 1, 2), rolls=5)
    memrope().merge(given_bank)
    assert torch.equal(given_bank.keys, given_bank.keys[:, :, :1].expand_as(given_bank.keys))


def test_a_token_that_moves_most_has_fifty_times_the_rate_of_one_that_rests() -> None:
    leaving = torch.zeros(1, 2, 1, 2)
    leaving[0, 0] = 8
    resting = bank(torch.zeros(2, 2, 1, 2), leaving, rolls=1)
    resting.values += 1
    memrope(pool_tokens=False, adaptive=True).merge(resting)
    assert resting.keys[0, 1, 0, 0].tolist() == pytest.approx([4, 4])  # rate 0.5
    assert resting.values[0, 1, 1, 0].tolist() == pytest.approx([0.99, 0.99])  # rate 0.01
    torch.testing.assert_close(resting.keys[0, 0, 0, 0], torch.tensor([0.08, 0.08]))


def test_half_precision_is_averaged_in_float32() -> None:
    memories, leaving = torch.randn(2, 4, 1, 2), torch.randn(3, 4, 1, 2)
    exact, half = bank(memories, leaving, 1), bank(memories.bfloat16(), leaving.bfloat16(), 1)
    for one in (exact, half):
        memrope(pool_tokens=False).merge(one)
    assert half.keys.dtype == torch.bfloat16
    torch.testing.assert_close(half.keys.float(), exact.keys, atol=0.03, rtol=0.01)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_bank_of_other_than_two_frames_is_refused(size: int) -> None:
    with pytest.raises(LayoutError, match=f"the regions give the bank {size} frames; make it 2"):
        MemRope().check_layout(Layout(3, 0, 7, bank=size))
    MemRope().check_layout(Layout(3, 0, 7, bank=2))


def test_adaptive_rates_need_tokens_of_their_own() -> None:
    with pytest.raises(ValidationError, match="set 'pool_tokens' to false"):
        MemRope.Options(adaptive=True)


@pytest.mark.parametrize("rate", [0.0, 1.1])
def test_rates_lie_between_nothing_and_all(rate: float) -> None:
    with pytest.raises(ValidationError, match="long_rate"):
        MemRope.Options(long_rate=rate)


def test_defaults_are_the_papers() -> None:
    options = MemRope().options
    assert (options.long_rate, options.short_rate, options.adaptive) == (0.01, 0.1, False)
