"""Attention in whole waves: the same attention wherever a call is cut, and never at a loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.cache.drive import assert_close
from tetherflow.cache.waves import TILE, Cut, cut_of, in_whole_waves, in_wide_waves


def with_log_sums(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention as the textbook has it, and the logarithms of its denominators `[B, H, Lq]`."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    found = (logits.softmax(dim=-1) @ value).transpose(1, 2)
    return (found if out is None else out.copy_(found)), logits.logsumexp(dim=-1)


@given(
    queries=st.integers(1, 700),
    keys=st.integers(1, 40).map(lambda n: n * 840),
    heads=st.integers(1, 3),
    at_once=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
def test_cut_attention_is_attention(queries: int, keys: int, heads: int, at_once: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(length: int) -> Tensor:
        return torch.randn(1, length, heads, 2, generator=generator, dtype=torch.float64)

    query, key, value = random(queries), random(keys), random(keys)
    found = in_whole_waves(with_log_sums, at_once)(query, key, value)
    assert_close([found], [with_log_sums(query, key, value)[0]], 1e-12)


@given(
    queries=st.integers(1, 20_000),
    keys=st.integers(1, 100_000),
    heads=st.integers(1, 40),
    at_once=st.sampled_from([78, 108, 114, 132]),
)
def test_cut_fills_whole_waves_and_visits_fewer_keys(
    queries: int, keys: int, heads: int, at_once: int
) -> None:
    cut = cut_of(queries, keys, heads, at_once)
    if cut is None:
        return
    assert (keys % cut.pieces, cut.whole % TILE) == (0, 0)
    assert cut.whole < queries

    def visited(rows: int, pieces: int = 1) -> int:
        """Keys that a device visits which finishes blocks at the same pace, `at_once` of them at a time."""
        return -(-(-(-rows // TILE) * heads * pieces) // at_once) * -(-keys // pieces)

    assert visited(cut.whole) + visited(queries - cut.whole, cut.pieces) < visited(queries)


def test_full_cache_of_the_published_model_on_an_h100() -> None:
    """4680 queries are 37 blocks of each of 12 heads, 3.4 waves of 132: 33 blocks a head fill three."""
    assert cut_of(3 * 1560, 21 * 1560, 12, 132) == Cut(33 * 128, 8)
    assert cut_of(3 * 1560, 512, 12, 132) is None  # a prompt is too short to be worth it
    assert cut_of(33 * 128, 21 * 1560, 12, 132) is None
    assert in_wide_waves(torch.Size([1, 33 * 128, 12, 128]), 132)  # 22 wide blocks a head fill two
    assert not in_wide_waves(torch.Size([1, 33 * 128 + 1, 12, 128]), 132)
    assert not in_wide_waves(torch.Size([1, 33 * 128, 12, 128]), 114)
    assert not in_wide_waves(torch.Size([1, 3 * 1560, 12, 128]), 132)


@pytest.mark.parametrize("batch", [2, 3])
def test_batch_is_not_cut(batch: int) -> None:
    calls: list[int] = []

    def counted(
        query: Tensor, key: Tensor, value: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        calls.append(query.shape[1])
        return with_log_sums(query, key, value, out)

    query, key = torch.randn(batch, 300, 1, 2), torch.randn(batch, 8400, 1, 2)
    in_whole_waves(counted, 2)(query, key, key)
    assert calls == [300]
    in_whole_waves(counted, 2)(query[:1], key[:1], key[:1])
    assert calls == [300, 44, 256]
