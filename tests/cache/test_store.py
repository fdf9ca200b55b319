"""One layer's store: moving units by index."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tetherflow.cache.store import EMPTY, LayerStore, StoreShape, pair_off

SHAPE = StoreShape(batch=2, budget=4, pending=2, tokens=3, heads=1, head_dim=2)


def store(rotated: bool = True, pooled: bool = True) -> LayerStore:
    kept = {"rotated": rotated, "pooled": pooled, "normed": pooled}
    made = LayerStore(SHAPE, dtype=torch.float32, device=torch.device("cpu"), **kept)
    generator = torch.Generator().manual_seed(0)
    for buffer in (
        made.keys,
        made.values,
        *(buffer for buffer in (made.moments, made.norms, made.rotated) if buffer is not None),
    ):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    made.origins[:, :4] = torch.tensor([[3, 0, 2, 1], [0, 1, 2, 3]])
    made.sort(4)
    return made


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[bool]], list[list[bool]]]:
    """For some samples, which movers move and which holes are vacant, as many in each row."""
    movers, holes = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    batch = draw(st.integers(1, 4))
    moving, vacant = [], []
    for _ in range(batch):
        count = draw(st.integers(0, min(movers, holes)))
        moving.append(draw(st.permutations([True] * count + [False] * (movers - count))))
        free = draw(st.integers(count, holes))
        vacant.append(draw(st.permutations([True] * free + [False] * (holes - free))))
    return moving, vacant


@given(rows=rows())
def test_pair_off_gives_every_mover_a_vacant_hole_of_its_own(
    rows: tuple[list[list[bool]], list[list[bool]]],
) -> None:
    """Movers take distinct vacant holes, in order; all others stay where they are."""
    moving, vacant = torch.tensor(rows[0]), torch.tensor(rows[1])
    movers = (100 + torch.arange(moving.shape[1])).expand_as(moving)
    holes = vacant.logical_not().to(torch.int8).argsort(dim=1)  # vacant ones first
    target = pair_off(movers, moving, holes)
    for row in range(len(moving)):
        free = holes[row][: int(vacant[row].sum())].tolist()
        assert target[row][moving[row]].tolist() == free[: int(moving[row].sum())]
        assert torch.equal(target[row][~moving[row]], movers[row][~moving[row]])


def test_sort_maps_time_order_to_slots() -> None:
    made = store()
    assert made.order.tolist() == [[1, 3, 2, 0], [0, 1, 2, 3]]
    assert made.unit_origins(made.order).tolist() == [[0, 1, 2, 3]] * 2


def test_take_copies() -> None:
    made = store()
    before = made.keys.clone()
    taken = made.take(made.keys, made.order)
    assert torch.equal(taken[0, 0], made.keys[0, 1])
    taken.fill_(0)
    assert torch.equal(made.keys, before)


def test_move_carries_all_that_belongs_to_a_unit() -> None:
    made, old = store(), store()
    made.move(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5], [5, 4]]))
    for name in ("keys", "values", "origins", "moments", "norms"):
        buffer, before = getattr(made, name), getattr(old, name)
        assert torch.equal(buffer[0, 4:], before[0, :2])
        assert torch.equal(buffer[1, 4:], before[1, [3, 2]])
        assert torch.equal(buffer[:, :4], before[:, :4])
    assert made.rotated is not None
    assert old.rotated is not None
    assert torch.equal(made.rotated, old.rotated)


def test_move_reads_all_before_it_writes() -> None:
    """A swap needs no third slot."""
    made, old = store(), store()
    made.move(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1, 0], [1, 0]]), rotated=True)
    assert torch.equal(made.keys[:, :2], old.keys[:, [1, 0]])
    assert made.rotated is not None
    assert old.rotated is not None
    assert torch.equal(made.rotated[:, :2], old.rotated[:, [1, 0]])


def test_snapshot_is_a_copy_and_restore_brings_it_back() -> None:
    made, old = store(), store()
    state = made.snapshot()
    for name in state:
        getattr(made, name).zero_()
    made.restore(state)
    for name, tensor in old.snapshot().items():
        assert torch.equal(made.snapshot()[name], tensor)


def test_only_what_is_asked_for_is_kept() -> None:
    """FIFO at absolute positions keeps no rotated copies and no statistics."""
    plain = store(rotated=False, pooled=False)
    assert plain.rotated is None
    assert plain.read_keys is plain.keys
    assert plain.moments is None
    assert plain.norms is None
    assert plain.nbytes < store().nbytes
    assert bool((plain.origins[:, 4:] == EMPTY).all())


def test_statistics_that_are_not_kept_are_computed() -> None:
    kept, plain = store(), store(pooled=False)
    kept.pool(0, 4)
    for found, expected in zip(plain.statistics(plain.order), kept.statistics(kept.order), strict=True):
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.variance, expected.variance)
    torch.testing.assert_close(plain.key_norms(plain.order), kept.key_norms(kept.order))


@pytest.mark.parametrize("head_dim", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_units_of_any_size_are_moved_bit_for_bit(head_dim: int, dtype: torch.dtype) -> None:
    """Also those that do not split into elements of 16 bytes, and bits that are no number."""
    shape = StoreShape(batch=2, budget=4, pending=0, tokens=1, heads=1, head_dim=head_dim)
    made = LayerStore(shape, dtype=dtype, device=torch.device("cpu"), rotated=True, pooled=False)
    made.keys.copy_(torch.randn(made.keys.shape)).view(-1)[::5] = torch.nan
    source, target = torch.tensor([[0, 3], [2, 1]]), torch.tensor([[3, 1], [0, 2]])
    expected, rows = made.keys.clone(), torch.arange(2)[:, None]
    expected[rows, target] = made.keys[rows, source]
    assert made.rotated is not None
    made.put(made.rotated, target, made.take(made.keys, source))
    made.move(source, target)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(made.keys.view(bits), expected.view(bits))
    assert torch.equal(made.rotated[rows, target].view(bits), expected[rows, target].view(bits))


def test_norms_of_half_precision_are_summed_in_float32() -> None:
    half = LayerStore(SHAPE, dtype=torch.float16, device=torch.device("cpu"), rotated=True, pooled=False)
    half.keys.copy_(1000 * torch.randn(half.keys.shape))
    half.origins[:, :4] = torch.arange(4)
    half.sort(4)
    found = half.key_norms(half.order)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, half.keys[:, :4].float().norm(dim=-1).mean(dim=2))
