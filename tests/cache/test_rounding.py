"""Coarse keys and values: how far off they are, and that attention reads no others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cache.drive import Sizes
from tetherflow.cache import CacheEngine
from tetherflow.cache.interfaces import Positions
from tetherflow.cache.rounding import BITS, coarse, exact
from tetherflow.recipe import layout_of, load_recipe, pipeline_of, unit_of

SIZES = Sizes(layers=2, grid=(4, 2))


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=50))
def test_coarse_numbers_are_near_and_stay_what_they_are(numbers: list[float]) -> None:
    x = torch.tensor(numbers).bfloat16()
    rounded = coarse(x)
    error = (rounded.double() - x.double()).abs()
    assert (error <= 2.0 ** -(BITS + 1) * x.double().abs() + 2.0**-130).all()
    assert torch.equal(coarse(rounded), rounded)
    assert torch.equal(coarse(-x), -rounded)
    assert not ((rounded.view(torch.int16) & ((1 << (7 - BITS)) - 1)) != 0).any()


def test_what_is_not_finite_and_other_types_are_left_alone() -> None:
    odd = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf]).bfloat16()
    odd = torch.cat([odd, torch.tensor([0x7FFF, -1], dtype=torch.int16).view(torch.bfloat16)])
    torch.testing.assert_close(coarse(odd), odd, atol=0, rtol=0, equal_nan=True)
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.randn(9, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert coarse(x) is x


@pytest.mark.parametrize("positions", ["block-relative", "absolute"])
@pytest.mark.parametrize("recipe", ["fifo", "tethercache", "h2o", "fademem", "memrope", "deep-forcing"])
def test_attention_reads_coarse_keys_and_values_alone(recipe: str, positions: Positions) -> None:
    """Of new units and of old ones that were edited, blended, merged, revised or moved."""
    read = load_recipe(recipe)
    layout = layout_of(read)

    def after(rounding: object) -> list[bool]:
        engine = CacheEngine(
            SIZES.shape,
            layout,
            pipeline_of(read),
            SIZES.rotary,
            positions=positions if recipe != "deep-forcing" else read.cache.positions,
            unit=unit_of(read),
            chunk_frames=3,
            dtype=torch.bfloat16,
            rounding=coarse if rounding is coarse else exact,
        )
        found = []
        for chunk in range(layout.budget // 3 + 4):
            engine.begin(3)
            for step in range(2):
                if step == 1:
                    engine.commit()
                passes = SIZES.random_pass([torch.Generator().manual_seed(10 * chunk + step)], 3)
                for layer, parts in enumerate(passes):
                    engine.attend(layer, *(part.bfloat16() for part in parts))
                    store = engine.layers[layer]
                    for buffer in (store.read_keys, store.values):
                        held = buffer[:, : engine.held]
                        found.append(torch.equal(coarse(held), held))
            engine.end()
        return found

    assert all(after(coarse))
    assert not any(after(exact))
