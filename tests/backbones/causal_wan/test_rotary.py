"""Wan's rotary embedding, against the definition and by its properties."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.cache import oracle as naive
from tetherflow_backbones.causal_wan import WanRotary

grids = st.tuples(st.integers(1, 4), st.integers(1, 4))
widths = st.sampled_from([2, 4, 6, 12, 16, 24, 128])


def tensor(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=40)
@given(
    grid=grids,
    head_dim=widths,
    positions=st.lists(st.integers(0, 5000), min_size=1, max_size=4),
    precision=st.sampled_from([torch.float32, torch.float64]),
)
def test_rotation_is_the_definition(
    grid: tuple[int, int], head_dim: int, positions: list[int], precision: torch.dtype
) -> None:
    """Time, row and column turn their own share of the channel pairs, also past position 1024."""
    x = tensor((2, len(positions), grid[0] * grid[1], 3, head_dim))
    found = WanRotary(head_dim, grid, precision).rotate(x, torch.tensor(positions))
    assert found.dtype == x.dtype
    for row in range(2):
        for frame, position in enumerate(positions):
            wanted = naive.rotate(x[row, frame], position, grid)
            torch.testing.assert_close(found[row, frame].double(), wanted, atol=2e-6, rtol=1e-5)


@settings(max_examples=25)
@given(grid=grids, head_dim=widths, position=st.integers(0, 10_000))
def test_rotation_keeps_norms(grid: tuple[int, int], head_dim: int, position: int) -> None:
    x = tensor((1, 1, grid[0] * grid[1], 2, head_dim), dtype=torch.float64)
    turned = WanRotary(head_dim, grid, torch.float64).rotate(x, torch.tensor([position]))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@settings(max_examples=25)
@given(
    grid=grids,
    head_dim=widths,
    query_at=st.integers(0, 2000),
    key_at=st.integers(0, 2000),
    shift=st.integers(0, 3000),
)
def test_products_depend_on_distances_alone(
    grid: tuple[int, int], head_dim: int, query_at: int, key_at: int, shift: int
) -> None:
    """q·k between any two tokens is the same when both frames move in time together."""
    rotary = WanRotary(head_dim, grid, torch.float64)
    shape = (1, 1, grid[0] * grid[1], 1, head_dim)
    query, key = tensor(shape, 1, torch.float64), tensor(shape, 2, torch.float64)

    def products(by: int) -> torch.Tensor:
        turned = (rotary.rotate(x, torch.tensor([at + by])) for x, at in ((query, query_at), (key, key_at)))
        return torch.einsum("bfthd,bfshd->ts", *turned)

    torch.testing.assert_close(products(0), products(shift), atol=1e-9, rtol=1e-9)


def test_position_zero_of_a_single_token_turns_nothing() -> None:
    x = tensor((1, 1, 1, 2, 12))
    assert torch.equal(WanRotary(12, (1, 1)).rotate(x, torch.tensor([0])), x)


@pytest.mark.parametrize("position", [0, 7, 1023, 1024, 100_000])
def test_float32_stays_near_float64(position: int) -> None:
    """Angles are float64 in both, so late frames are as exact as early ones."""
    x = tensor((1, 1, 6, 2, 24))
    fast, exact = (WanRotary(24, (2, 3), precision) for precision in (torch.float32, torch.float64))
    torch.testing.assert_close(
        fast.rotate(x, torch.tensor([position])), exact.rotate(x, torch.tensor([position])), atol=2e-6, rtol=0
    )


def test_samples_may_stand_at_positions_of_their_own() -> None:
    rotary = WanRotary(12, (2, 2))
    x = tensor((2, 3, 4, 1, 12))
    positions = torch.tensor([[0, 1, 2], [5, 9, 40]])
    together = rotary.rotate(x, positions)
    for row in range(2):
        torch.testing.assert_close(together[row : row + 1], rotary.rotate(x[row : row + 1], positions[row]))


def test_phases_serve_many_tensors() -> None:
    rotary = WanRotary(12, (2, 2))
    phases = rotary.phases(torch.arange(3))
    assert phases.shape == (3, 4, 1, 6)
    x = tensor((2, 3, 4, 5, 12))
    assert torch.equal(rotary.turn(x, phases), rotary.rotate(x, torch.arange(3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_type_of_the_tensor_is_kept(dtype: torch.dtype) -> None:
    x = tensor((1, 2, 4, 1, 12)).to(dtype)
    assert WanRotary(12, (2, 2)).rotate(x, torch.arange(2)).dtype == dtype


def test_tensor_need_not_be_contiguous() -> None:
    """Queries are slices of a fused projection."""
    x = tensor((1, 2, 4, 3, 24))
    rotary = WanRotary(12, (2, 2))
    part = x[..., 12:]
    assert torch.equal(
        rotary.rotate(part, torch.arange(2)), rotary.rotate(part.contiguous(), torch.arange(2))
    )
