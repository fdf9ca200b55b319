"""Queries, keys and values in one tensor: the engine does with them what it does with three."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cache.drive import Sizes, assert_same, contents
from tetherflow import Layout, When
from tetherflow.cache import CacheEngine
from tetherflow.cache.interfaces import Positions
from tetherflow.pipeline import Pipeline
from tetherflow_policies.grab import Relevance, TopM
from tetherflow_policies.key_norm import KeyNorm
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame


class Halves:
    """Norms of a kind: queries are halved, keys negated."""

    def unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = packed.unbind(2)
        return query / 2, -key, value


@pytest.mark.parametrize("when", ["begin", "first-pass", "commit"])
@pytest.mark.parametrize("share_rotated", [False, True])
@pytest.mark.parametrize("positions", ["block-relative", "absolute"])
def test_packed_tensors_are_normalised_before_anything_sees_them(
    when: When, share_rotated: bool, positions: Positions
) -> None:
    sizes = Sizes(layers=3)
    scorer = KeyNorm() if when == "begin" else Relevance()
    policy = Pipeline(RecallWindow(RecallWindow.Options(when=when)), [scorer], TopM(), [Tame()])
    engines = [
        CacheEngine(
            sizes.shape,
            Layout(1, 3, 4),
            policy,
            sizes.rotary,
            batch=2,
            positions=positions,
            share_rotated=share_rotated,
        )
        for _ in range(2)
    ]

    def one(passes: list[tuple[Tensor, Tensor, Tensor]], last: bool) -> list[list[Tensor]]:
        plain, packed = [], []
        for layer, (query, key, value) in enumerate(passes):
            together = torch.stack([query * 2, -key, value], dim=2)
            if last and layer == len(passes) - 1:
                engines[0].keep(layer, query, key, value)
                engines[1].keep_packed(layer, together, Halves())
            else:
                plain.append(engines[0].attend(layer, query, key, value))
                packed.append(engines[1].attend_packed(layer, together, Halves()))
        return [plain, packed]

    for chunk in range(6):
        for engine in engines:
            engine.begin(2)
        for step in range(3):
            if step == 2:
                for engine in engines:
                    engine.commit()
            generators = [torch.Generator().manual_seed(100 * row + 10 * chunk + step) for row in range(2)]
            assert_same(*one(sizes.random_pass(generators, 2), step == 2))
        for engine in engines:
            engine.end()
        assert_same(*(contents(engine) for engine in engines))
