"""Queries, keys and values in one tensor: the engine does with them what it does with three."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cache.drive import Sizes, assert_same, contents
from tetherflow import Candidates, Layout, Scorer, When, hookimpl
from tetherflow.cache import CacheEngine
from tetherflow.cache.interfaces import Positions, Rotary
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import layout_of, load_recipe, pipeline_of, unit_of
from tetherflow_policies.grab import Relevance, TopM
from tetherflow_policies.key_norm import KeyNorm
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame

SIZES = Sizes(layers=3, grid=(4, 2))


class Halves:
    """Norms of a kind: queries are halved, keys negated."""

    def query_of(self, packed: Tensor) -> Tensor:
        return packed[:, :, 0] / 2

    def key_value_of(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        return -packed[:, :, 1], packed[:, :, 2]


class HalvesAtOnce(Halves):
    """May write by itself, as a module that has a kernel."""

    def __init__(self, *, able: bool) -> None:
        self.able, self.asked = able, 0

    def write(
        self,
        packed: Tensor,
        rotary: Rotary,
        phases: Tensor,
        keys: Tensor,
        values: Tensor,
        plain: Tensor | None,
        *,
        coarse: bool,
    ) -> Tensor | None:
        self.asked += 1
        if not self.able:
            return None
        query, (key, value) = self.query_of(packed), self.key_value_of(packed)
        by_frame = (query.shape[0], -1, SIZES.shape.tokens, *query.shape[2:])
        keys.copy_(rotary.turn(key.reshape(by_frame), phases).flatten(1, 2))
        values.copy_(value)
        if plain is not None:
            plain.copy_(key)
        return rotary.turn(query.reshape(by_frame), phases).flatten(1, 2)


def drive(
    plain: CacheEngine, packed: CacheEngine, *, frames: int, chunks: int, source: Halves | None = None
) -> None:
    """Give both engines the same passes, one of them in one tensor, and compare all that comes of it."""
    source = source or Halves()
    for chunk in range(chunks):
        for engine in (plain, packed):
            engine.begin(frames)
        for step in range(3):
            if step == 2:
                for engine in (plain, packed):
                    engine.commit()
            seeds = [100 * row + 10 * chunk + step for row in range(plain.batch)]
            passes = SIZES.random_pass([torch.Generator().manual_seed(seed) for seed in seeds], frames)
            for layer, (query, key, value) in enumerate(passes):
                together = torch.stack([query * 2, -key, value], dim=2)
                if step == 2 and layer == SIZES.layers - 1:
                    plain.keep(layer, query, key, value)
                    packed.keep_packed(layer, together, source)
                else:
                    out = packed.attend_packed(layer, together, source)
                    assert_same([plain.attend(layer, query, key, value)], [out])
        for engine in (plain, packed):
            engine.end()
        assert_same(contents(plain), contents(packed))


@pytest.mark.parametrize("when", ["begin", "first-pass", "commit"])
@pytest.mark.parametrize("share_rotated", [False, True])
@pytest.mark.parametrize("positions", ["block-relative", "absolute"])
def test_packed_tensors_are_normalised_before_anything_sees_them(
    when: When, share_rotated: bool, positions: Positions
) -> None:
    scorer = KeyNorm() if when == "begin" else Relevance()
    policy = Pipeline(RecallWindow(RecallWindow.Options(when=when)), [scorer], TopM(), [Tame()])
    one, other = (
        CacheEngine(
            SIZES.shape,
            Layout(1, 3, 4),
            policy,
            SIZES.rotary,
            batch=2,
            positions=positions,
            share_rotated=share_rotated,
        )
        for _ in range(2)
    )
    drive(one, other, frames=2, chunks=6)


@pytest.mark.parametrize(
    "recipe",
    [
        "forcing-kv",  # heads that read apart, units of half a frame
        "h2o",  # units are revised
        "deep-forcing",  # units of one token
        "rolling-forcing",  # a policy places units
        "memrope",  # what leaves is merged
    ],
)
def test_every_hook_sees_them_alike(recipe: str) -> None:
    heads = ["stages.select.static_heads=[[0],[1],[]]"] if recipe == "forcing-kv" else []
    read = load_recipe(recipe, heads)
    one, other = (
        CacheEngine(
            SIZES.shape,
            layout_of(read),
            pipeline_of(read),
            SIZES.rotary,
            positions=read.cache.positions,
            unit=unit_of(read),
            chunk_frames=3,
        )
        for _ in range(2)
    )
    drive(one, other, frames=3, chunks=layout_of(read).budget // 3 + 3)


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("positions", ["block-relative", "absolute"])
def test_a_source_that_writes_by_itself_is_asked_in_every_pass(able: bool, positions: Positions) -> None:
    policy = Pipeline(RecallWindow(RecallWindow.Options(when="commit")), [Relevance()], TopM(), [Tame()])
    one, other = (
        CacheEngine(SIZES.shape, Layout(1, 3, 4), policy, SIZES.rotary, batch=2, positions=positions)
        for _ in range(2)
    )
    source = HalvesAtOnce(able=able)
    drive(one, other, frames=2, chunks=6, source=source)
    assert source.asked == 6 * 3 * SIZES.layers


class Asks(KeyNorm):
    """Looks at all queries, and at their mean."""

    needs_query = True

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        assert torch.equal(candidates.query.mean(dim=(1, 2)), candidates.mean_query)
        return candidates.mean_keys.mean(dim=(2, 3))


class Counts(HalvesAtOnce):
    """Counts how often queries are normalised to be looked at."""

    def __init__(self) -> None:
        super().__init__(able=True)
        self.looked = 0

    def query_of(self, packed: Tensor) -> Tensor:
        self.looked += 1
        return super().query_of(packed)


@pytest.mark.parametrize(("scorer", "looks"), [(KeyNorm, 0), (Relevance, 1), (Asks, 1)])
def test_queries_are_normalised_as_often_as_a_decision_looks_at_them(
    scorer: type[Scorer], looks: int
) -> None:
    """Not at all, for their mean, or once for all that is asked; that of a source's own `write` aside."""
    policy = Pipeline(RecallWindow(), [scorer()], TopM(), [Tame()])
    assert policy.uses.mean_query == (scorer is Relevance)
    one, other = (CacheEngine(SIZES.shape, Layout(1, 3, 4), policy, SIZES.rotary) for _ in range(2))
    source = Counts()
    drive(one, other, frames=2, chunks=6, source=source)
    decisions = 2 * SIZES.layers  # in the last chunks, which push units out of recent
    assert source.looked - source.asked == looks * decisions
