"""Where a GPU's time goes; run with `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import math

import pytest
import torch

from tetherflow.bench.parts import PARTS, measure_parts
from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import open_session, tuning_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("products", ["precision", "fp8"])
def test_every_part_is_found_on_the_device(products: str) -> None:
    """Products, too, which compiled graphs call."""
    recipe = load_recipe("tethercache", ["backbone.use=synthetic", f"runtime.matmul={products}"])
    cuda = torch.device("cuda")
    session = open_session(recipe, cuda)
    parts = measure_parts(session, tuning_of(recipe, cuda, session.backbone), "a red circle", math.nan)
    print(f"\n{parts}")
    assert list(parts) == list(PARTS)
    assert min(parts.values()) > 0
