"""One layer's store: moving units by index."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tetherflow.cache.book import EMPTY
from tetherflow.cache.indexing import close_up, movers_first, relocate
from tetherflow.cache.statistics import Statistics
from tetherflow.cache.store import LayerStore, StoreShape

SHAPE = StoreShape(batch=2, budget=4, pending=2, tokens=3, heads=1, head_dim=2)


def store(rotated: bool = True, pooled: bool = True) -> LayerStore:
    book = SHAPE.book(1, device=torch.device("cpu"), pooled=pooled, normed=pooled)
    made = LayerStore(SHAPE, book, dtype=torch.float32, rotated=rotated)
    generator = torch.Generator().manual_seed(0)
    for buffer in (
        made.keys,
        made.values,
        *(buffer for buffer in (made.book.moments, made.book.norms, made.rotated) if buffer is not None),
    ):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    made.book.origins[:, :4] = torch.tensor([[3, 0, 2, 1], [0, 1, 2, 3]])
    made.sort(4)
    return made


@st.composite
def departures(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """For some samples, as many slots that become free in each, and how many are in use."""
    held = draw(st.integers(1, 8))
    count = draw(st.integers(1, held))
    batch = draw(st.integers(1, 4))
    rows = [draw(st.permutations(range(held)))[:count] for _ in range(batch)]
    return torch.tensor(rows), held


@given(departure=departures())
def test_those_that_stay_close_up_and_nothing_else_moves(departure: tuple[torch.Tensor, int]) -> None:
    """They fill the first slots, and only those past the new end move, in order."""
    leaving, held = departure
    units = (100 + torch.arange(held)).expand(len(leaving), -1)
    source = close_up(leaving, held)
    moved = units.scatter(1, leaving, units.gather(1, source))
    for sources, targets in zip(source.tolist(), leaving.tolist(), strict=True):
        others = (set(targets) - {to} for to in targets)
        assert all(at not in other for at, other in zip(sources, others, strict=True))
    kept = held - leaving.shape[1]
    for row in range(len(leaving)):
        gone = set(leaving[row].tolist())
        late = [unit for slot, unit in enumerate(units[row].tolist()) if slot >= kept and slot not in gone]
        expected = [late.pop(0) if slot in gone else int(units[row, slot]) for slot in range(kept)]
        assert moved[row, :kept].tolist() == expected
        assert not late


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_movers_come_first_and_keep_their_order(moving: list[list[bool]]) -> None:
    slots = (100 + torch.arange(5)).expand(len(moving), -1)
    found = movers_first(slots, torch.tensor(moving))
    for row, moves in enumerate(moving):
        expected = [100 + i for i in range(5) if moves[i]] + [100 + i for i in range(5) if not moves[i]]
        assert found[row].tolist() == expected


@pytest.mark.parametrize("head_dim", [1, 4])
def test_book_of_all_layers_is_their_books_together(head_dim: int) -> None:
    """Moving in all rows at once is moving in each layer's own."""
    shape = attrs.evolve(SHAPE, head_dim=head_dim)
    whole = shape.book(2, device=torch.device("cpu"), pooled=True, metadata={"age": 1.0, "hits": 0.0})
    assert whole.moments is not None
    assert whole.notes is not None
    whole.admit(slice(0, 6), torch.arange(6))
    for tensor in (whole.moments, whole.notes):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    before = [tensor.clone() for tensor in (whole.origins, whole.moments, whole.notes)]
    source, target = (
        torch.tensor([[0, 1], [2, 3], [4, 5], [1, 2]]),
        torch.tensor([[5, 0], [1, 2], [0, 3], [2, 1]]),
    )
    whole.move(source, target)
    after = [tensor.clone() for tensor in (whole.origins, whole.moments, whole.notes)]
    for tensor, old in zip((whole.origins, whole.moments, whole.notes), before, strict=True):
        tensor.copy_(old)
    for layer in (slice(0, 2), slice(2, 4)):
        whole.rows(layer.start, layer.stop).move(source[layer], target[layer])
    for tensor, expected in zip((whole.origins, whole.moments, whole.notes), after, strict=True):
        assert torch.equal(tensor, expected)


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
    buffers = [(x.keys, x.values, x.book.origins, x.book.moments, x.book.norms) for x in (made, old)]
    for buffer, before in zip(*buffers, strict=True):
        assert buffer is not None
        assert before is not None
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
    for buffer in (made.units, made.order, made.rotated, made.book.origins, made.book.moments):
        assert buffer is not None
        buffer.zero_()
    made.restore(state)
    for name, tensor in old.snapshot().items():
        assert torch.equal(made.snapshot()[name], tensor)


def test_only_what_is_asked_for_is_kept() -> None:
    """FIFO at absolute positions keeps no rotated copies and no statistics."""
    plain = store(rotated=False, pooled=False)
    assert plain.rotated is None
    assert plain.read_keys is plain.keys
    assert plain.book.moments is None
    assert plain.book.norms is None
    assert plain.nbytes < store().nbytes
    assert bool((plain.book.origins[:, 4:] == EMPTY).all())


def test_statistics_that_are_not_kept_are_computed() -> None:
    kept, plain = store(), store(pooled=False)
    kept.pool(0, 4)
    found, expected = plain.statistics(plain.order), kept.statistics(kept.order)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.variance, expected.variance)
    torch.testing.assert_close(plain.key_norms(plain.order), kept.key_norms(kept.order))


def test_statistics_are_those_of_what_was_written() -> None:
    made = store()
    units = torch.randn(2, 2, 2, 3, 1, 2, generator=torch.Generator().manual_seed(1))
    slots = torch.tensor([[4, 0], [2, 5]])
    made.write(slots, units)
    assert torch.equal(made.read(slots), units)
    found = made.statistics(slots)
    for index, x in enumerate(units):
        expected = Statistics.of(x)
        assert torch.equal(found[:, :, index].mean, expected.mean)
        assert torch.equal(found[:, :, index].variance, expected.variance)


@pytest.mark.parametrize("head_dim", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_units_of_any_size_are_moved_bit_for_bit(head_dim: int, dtype: torch.dtype) -> None:
    """Also those that do not split into elements of 16 bytes, and bits that are no number."""
    shape = StoreShape(batch=2, budget=4, pending=0, tokens=1, heads=1, head_dim=head_dim)
    book = shape.book(1, device=torch.device("cpu"), pooled=False)
    made = LayerStore(shape, book, dtype=dtype, rotated=True)
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
    book = SHAPE.book(1, device=torch.device("cpu"), pooled=False)
    half = LayerStore(SHAPE, book, dtype=torch.float16, rotated=True)
    half.keys.copy_(1000 * torch.randn(half.keys.shape))
    book.origins[:, :4] = torch.arange(4)
    half.sort(4)
    found = half.key_norms(half.order)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, half.keys[:, :4].float().norm(dim=-1).mean(dim=2))


@pytest.mark.parametrize("aside", [True, False])
@given(departure=departures())
def test_units_are_relocated_into_holes(aside: bool, departure: tuple[torch.Tensor, int]) -> None:
    """And what was there goes past the others before, in the order in which the holes are named."""
    leaving, held = departure
    batch, count = leaving.shape
    source, row = close_up(leaving, held), torch.arange(batch)[:, None]
    units = torch.randn(2, batch, held + count, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = units.clone()
    for sample in range(batch):
        for index, (at, hole) in enumerate(
            zip(source[sample].tolist(), leaving[sample].tolist(), strict=True)
        ):
            expected[:, sample, hole] = units[:, sample, at]
            if aside:
                expected[:, sample, held + index] = units[:, sample, hole]
    relocate(units, row, source, leaving, lead=1, aside=held if aside else None)
    assert torch.equal(units, expected)
