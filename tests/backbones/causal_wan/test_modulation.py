"""Modulation: each frame's and each block's own, and how long it lets a token be."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tetherflow_backbones.causal_wan.modulation import gated, longest_norm, modulate, modulations


def parts(layers: int = 2, frames: int = 3, dim: int = 8) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(1, 6, dim, generator=generator) for _ in range(layers)]
    return own, torch.randn(2, frames, 6, dim, generator=generator)


def test_modulation_is_each_frames_own() -> None:
    x = torch.ones(1, 6, 2)
    shift, scale = torch.zeros(1, 2, 1, 2), torch.tensor([0.0, 2.0])[None, :, None, None].expand(1, 2, 1, 2)
    assert modulate(x, shift, scale)[0, :, 0].tolist() == [0, 0, 0, 2, 2, 2]
    assert gated(x, scale)[0, :, 0].tolist() == [0, 0, 0, 2, 2, 2]


def test_blocks_have_their_own_part_and_time_adds_to_it() -> None:
    own, by_time = parts()
    found = modulations(own, by_time, bounded=False).by_block()
    assert [block.frames for block in found] == [3, 3]
    for block, mine in zip(found, own, strict=True):
        expected = list((mine[:, None] + by_time).chunk(6, dim=2))
        for scale in (1, 4):
            expected[scale] = 1 + expected[scale]
        for tensor, wanted in zip((*block.attention[:3], *block.feed_forward[:3]), expected, strict=True):
            assert torch.equal(tensor, wanted)
        assert block.attention.longest is block.feed_forward.longest is None


def test_no_token_is_longer_than_is_said() -> None:
    own, by_time = parts()
    x = torch.randn(2, 3 * 5, 8, generator=torch.Generator().manual_seed(1))
    normal = functional.layer_norm(x, (8,))
    for block in modulations(own, by_time, bounded=True).by_block():
        for shift, scale, _, longest in block:
            assert longest is not None
            assert longest.dtype == torch.float32
            norms = modulate(normal, shift, scale).norm(dim=-1)
            assert float(norms.amax()) <= float(longest) < 4 * float(norms.amax())


@given(st.integers(0, 2**31))
def test_the_longest_token_of_all_frames_and_samples_is_as_long_as_is_said(seed: int) -> None:
    """Each is scaled evenly and shifted along itself, so that it gets as long as it can."""
    generator = torch.Generator().manual_seed(seed)
    normal = functional.layer_norm(torch.randn(2, 3, 8, generator=generator), (8,), eps=0)
    even, along = (3 * torch.rand(2, 3, 1, generator=generator) for _ in range(2))
    by_time = torch.zeros(2, 3, 6, 8)
    by_time[:, :, 0], by_time[:, :, 1] = along * normal, even - 1
    shift, scale, _, longest = (
        modulations([torch.zeros(1, 6, 8)], by_time, bounded=True).by_block()[0].attention
    )
    torch.testing.assert_close(modulate(normal, shift, scale).norm(dim=-1).amax(), longest)


@given(st.integers(2, 16), st.floats(-5, 5), st.integers(0, 2**31))
def test_a_token_along_the_largest_scale_is_as_long_as_is_said(dim: int, factor: float, seed: int) -> None:
    scale = torch.randn(dim, generator=torch.Generator().manual_seed(seed))
    token = torch.zeros(dim)
    token[scale.abs().argmax()] = dim**0.5
    found = longest_norm(factor * scale, torch.zeros(dim))
    torch.testing.assert_close((factor * scale * token).norm(), found)
