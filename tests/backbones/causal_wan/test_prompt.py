"""Padding of prompts: one token of it stands for all."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.backbones.causal_wan.models import SMALL, transformer
from tetherflow.cache.attention import PLAIN
from tetherflow_backbones.causal_wan.block import CrossAttention
from tetherflow_backbones.causal_wan.prompt import attend_whole, without_padding


@given(st.lists(st.integers(0, 12), min_size=1, max_size=3), st.integers(0, 2**31))
@torch.inference_mode()
def test_one_token_of_padding_stands_for_all(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(len(lengths), 12, SMALL.dim, generator=generator)
    for row, length in zip(text, lengths, strict=True):
        row[length:] = 0
    kept, alike = without_padding(text)
    assert kept.shape[1] == (max(lengths) + 1 if max(lengths) < 6 else 12)
    assert kept.shape[1] + alike - 1 == 12
    attention = CrossAttention(SMALL)
    query = attention.split(torch.randn(len(lengths), 5, SMALL.dim, generator=generator))
    found = attend_whole(query, attention.prompt(kept, alike), PLAIN)
    expected = attend_whole(query, attention.prompt(text), PLAIN)
    torch.testing.assert_close(found.values, expected.values)
    assert found.limit is None


@torch.inference_mode()
def test_all_of_a_prompt_is_attended_to_without_the_kernel() -> None:
    """As published: padding is left where it is."""
    context = torch.zeros(1, 6, 12)
    for prompt in transformer().prepare_text(context):
        assert prompt.key.shape[1] == 6
        assert prompt.alike == 1
