"""What is known before memory is decided: of all layers at once as of each alone, and not looked up again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tetherflow.cache.book import Book
from tetherflow.cache.fusing import step_by_step
from tetherflow.cache.known import Known


def book(rows: int, slots: int, *, pooled: bool) -> Book:
    found = Book.empty(
        rows, slots, (2, 3), device=torch.device("cpu"), pooled=pooled, normed=False, metadata={}
    )
    found.origins.copy_(torch.arange(rows * slots).view(rows, slots))
    if found.moments is not None:
        found.moments.copy_(torch.rand(found.moments.shape, generator=torch.Generator().manual_seed(0)))
    return found


@given(batch=st.integers(1, 2), standing=st.integers(0, 2), memory=st.integers(1, 3), seed=st.integers(0, 99))
def test_all_layers_at_once_are_each_alone(batch: int, standing: int, memory: int, seed: int) -> None:
    layers, slots, trusted = 3, 9, standing + memory
    whole = book(layers * batch, slots, pooled=True)
    shuffled = torch.rand(layers * batch, slots, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    order, newcomers = shuffled[:, :trusted], shuffled[:, trusted : trusted + 2]
    together = Known.of(whole, order, newcomers, standing, pools=True, fuse=step_by_step)
    for start in range(0, layers * batch, batch):
        own = slice(start, start + batch)
        alone = Known.of(
            whole.rows(start, start + batch),
            order[own],
            newcomers[own],
            standing,
            pools=True,
            fuse=step_by_step,
        )
        view = together.rows(start, start + batch)
        assert torch.equal(view.slots, alone.slots)
        assert torch.equal(view.origins, alone.origins)
        assert view.mean_keys is not None
        assert alone.mean_keys is not None
        assert torch.equal(view.mean_keys, alone.mean_keys)
        for one, other in ((view.statistics, alone.statistics), (view.pool, alone.pool)):
            assert one is not None
            assert other is not None
            assert torch.equal(one.mean, other.mean)
            torch.testing.assert_close(one.variance, other.variance)


@pytest.mark.parametrize("pooled", [True, False])
def test_what_is_known_is_a_copy_of_what_the_book_keeps(pooled: bool) -> None:
    whole = book(1, 6, pooled=pooled)
    order, newcomers = torch.tensor([[4, 0, 2]]), torch.tensor([[5]])
    known = Known.of(whole, order, newcomers, 1, pools=False, fuse=step_by_step)
    assert known.slots.tolist() == known.origins.tolist() == [[4, 0, 2, 5]]
    assert known.pool is None
    assert (known.statistics is None) == (known.mean_keys is None) == (not pooled)
    if whole.moments is not None and known.mean_keys is not None and known.statistics is not None:
        expected = whole.moments[:, [0, 2, 5], 0, 0]
        assert torch.equal(known.mean_keys, expected)
        known.mean_keys.zero_()  # as a careless scorer may
        assert bool(known.statistics.mean.any())
        assert bool(whole.moments.all())
