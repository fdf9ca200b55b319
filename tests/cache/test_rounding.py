"""Coarse keys and values: how far off they are, and that attention reads no others."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.backbones.test_synthetic import OVERRIDES
from tests.cache.drive import Sizes
from tetherflow.cache import CacheEngine
from tetherflow.cache.fusing import Fuse, step_by_step
from tetherflow.cache.interfaces import Positions
from tetherflow.cache.rounding import BITS, STEP, rounded
from tetherflow.recipe import layout_of, load_recipe, pipeline_of, unit_of
from tetherflow.rollout.open_session import open_session

CPU = torch.device("cpu")
SIZES = Sizes(layers=2, grid=(4, 2))
coarse = partial(rounded, coarse=True)


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=50))
def test_coarse_numbers_are_near_and_stay_what_they_are(numbers: list[float]) -> None:
    x = torch.tensor(numbers).bfloat16()
    near = coarse(x)
    error = (near.double() - x.double()).abs()
    assert (error <= 2.0 ** -(BITS + 1) * x.double().abs() + 2.0**-130).all()
    assert torch.equal(coarse(near), near)
    assert torch.equal(coarse(-x), -near)
    assert not (near.view(torch.int16) % STEP).any()
    assert rounded(x, coarse=False) is x


def test_what_is_not_finite_and_other_types_are_left_alone() -> None:
    odd = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf]).bfloat16()
    odd = torch.cat([odd, torch.tensor([0x7FFF, -1], dtype=torch.int16).view(torch.bfloat16)])
    torch.testing.assert_close(coarse(odd), odd, atol=0, rtol=0, equal_nan=True)
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.randn(9, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert coarse(x) is x


def reads_coarse(
    recipe: str,
    *,
    asked: bool,
    positions: Positions | None = None,
    shares: bool = False,
    fuse: Fuse = step_by_step,
) -> list[bool]:
    """Whether what attention reads is coarse, pass after pass: keys, and values."""
    read = load_recipe(recipe)
    layout = layout_of(read)
    engine = CacheEngine(
        SIZES.shape,
        layout,
        pipeline_of(read),
        SIZES.rotary,
        positions=positions or read.cache.positions,
        unit=unit_of(read),
        chunk_frames=3,
        dtype=torch.bfloat16,
        coarse=asked,
        share_rotated=shares,
        fuse=fuse,
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


@pytest.mark.parametrize("positions", ["block-relative", "absolute"])
@pytest.mark.parametrize("recipe", ["fifo", "tethercache", "h2o", "fademem", "memrope"])
def test_attention_reads_coarse_keys_and_values_alone(recipe: str, positions: Positions) -> None:
    """Of new units and of old ones that were edited, blended, merged, revised or moved."""
    assert all(reads_coarse(recipe, asked=True, positions=positions))
    assert not any(reads_coarse(recipe, asked=False, positions=positions))


def test_units_of_a_token_shared_buffers_and_compiled_functions_are_coarse_too() -> None:
    compiled = cache(partial(torch.compile, backend="aot_eager"))
    assert all(reads_coarse("deep-forcing", asked=True))
    assert all(reads_coarse("tethercache", asked=True, shares=True))
    assert all(reads_coarse("tethercache", asked=True, fuse=compiled))


def test_statistics_are_of_what_is_stored() -> None:
    """Of units that an editor has changed, too."""
    read = load_recipe("tethercache")
    engine = CacheEngine(
        SIZES.shape, layout_of(read), pipeline_of(read), SIZES.rotary, dtype=torch.bfloat16, coarse=True
    )
    for chunk in range(12):
        engine.begin(3)
        engine.commit()
        passes = SIZES.random_pass([torch.Generator().manual_seed(chunk)], 3)
        for layer, parts in enumerate(passes):
            engine.attend(layer, *(part.bfloat16() for part in parts))
        engine.end()
    for store in engine.layers:
        slots = store.order
        found, expected = store.statistics(slots), store._statistics(store.read(slots))
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.variance, expected.variance)


@pytest.mark.parametrize(("matmul", "asked"), [("fp8", True), ("precision", False)])
def test_recipe_in_8_bits_asks_for_it(matmul: str, asked: bool) -> None:
    session = open_session(load_recipe("tethercache", [*OVERRIDES, f"runtime.matmul={matmul}"]), CPU)
    cache = session.new_cache(1)
    assert (cache.placing.coarse, cache.layers[0].coarse) == (asked, asked)
