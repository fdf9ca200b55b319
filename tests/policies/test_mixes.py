"""Stages of different policies together: recipes of a line, held to the engine's invariants."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tetherflow.cache import CacheEngine
from tetherflow.recipe import Recipe, layout_of, load_recipe, pipeline_of, unit_of
from tetherflow.testing import Model, run, write_script
from tetherflow.testing.machine import EngineMachine

MIXES = {
    "grab, key-norm": "{extends: tethercache, stages: {score: [relevance, temporal-diversity, key-norm]}}",
    "grab, heavy-hitter": "{extends: tethercache, stages: {score: [relevance, temporal-diversity, heavy-hitter]}}",
    "heavy-hitter, tame": "{extends: h2o-tame}",
    "heavy-hitter, key-norm": "{extends: h2o, stages: {score: [heavy-hitter, key-norm]}}",
    "relevance, tame, no sink": "{extends: grab-no-diversity, cache: {regions: {sink: 0, memory: 17}}}",
    "grab, tame, first pass": "{extends: tethercache, stages: {evict: {use: recall-window, when: first-pass}}}",
    "key-norm, tame": "{extends: key-norm, stages: {edit: [tame]}}",
    "heavy-hitter, commit": "{extends: h2o, stages: {evict: {use: recall-window, when: commit}}}",
    "grab, tame, memrope": "{extends: tethercache, cache: {regions: {bank: 2, memory: 12}}, stages: {merge: memrope}}",
    "h2o, memrope": "{extends: h2o, cache: {regions: {bank: 2, memory: 8}}, stages: {merge: memrope}}",
    "sink-window, memrope": "{extends: sink-window, cache: {regions: {bank: 2, recent: 16}}, stages: {merge: memrope}}",
    "memrope, adaptive": "{extends: memrope, stages: {merge: {use: memrope, pool_tokens: false, adaptive: true}}}",
    "memrope, absolute": "{extends: memrope, cache: {positions: absolute}}",
    "memrope, bands": "{extends: memrope, cache: {unit: {rows: 1}}, stages: {merge: {pool_tokens: false}}}",
    "key-norm, token": "{extends: key-norm, cache: {unit: token}}",
    "h2o, token, absolute": "{extends: h2o, cache: {unit: token, positions: absolute}}",
    "grab, tame, bands": "{extends: tethercache, cache: {unit: {rows: 1}}}",
    "grab, ema-sink": "{extends: grab-ema-sink}",
    "grab, tame, ema-sink, token": "{extends: grab-ema-sink, cache: {unit: token}, stages: {edit: [tame]}}",
    "fademem, tame": "{extends: fademem-tame}",
    "forcing-kv, tame": "{extends: forcing-kv, cache: {unit: {rows: 1}}, stages: {edit: [tame], select: {static_heads: [[], [0]]}}}",
    "forcing-kv, ema-sink": "{extends: forcing-kv, cache: {unit: {rows: 1}, budget: 9, regions: {bank: 3}}, stages: {select: {static_heads: [[1], [0]]}, merge: ema-sink}}",
    "forcing-kv, memrope": "{extends: forcing-kv, cache: {unit: {rows: 1}, budget: 8, regions: {bank: 2}}, stages: {select: {static_heads: []}, merge: memrope}}",
    "rolling-sink, ema-sink": "{extends: rolling-sink, cache: {regions: {bank: 3, recent: 18}}, stages: {evict: {archive: 6}, merge: ema-sink}}",
    "rolling-sink, memrope, sink": "{extends: rolling-sink, cache: {regions: {sink: 3, bank: 2, recent: 16}}, stages: {evict: {archive: 6}, merge: memrope}}",
    "infinity-rope, ema-sink": "{extends: infinity-rope, cache: {budget: 9, regions: {bank: 3}}, stages: {merge: ema-sink}}",
    "longlive, memrope": "{extends: longlive, cache: {regions: {bank: 2, recent: 7}}, stages: {merge: memrope}}",
    "deep-forcing, key-norm, tame": "{extends: deep-forcing, cache: {unit: {rows: 1}}, stages: {score: [key-norm], edit: [tame]}}",
    "participation, heavy-hitter": "{extends: deep-forcing, stages: {score: [participation, heavy-hitter]}}",
    "grab by distance, tame on a ramp": "{extends: tethercache-ramp, stages: {score: [relevance, {use: temporal-diversity, alpha: {use: drift-distance, low: 0.5, high: 0.1}}]}}",
    "grab, tame by distance, tokens": "{extends: tethercache-adaptive, cache: {unit: token}}",
    "h2o, more queries over time": "{extends: h2o, stages: {score: [{use: heavy-hitter, queries: {use: ramp, from: 1, to: 9, seconds: 5}}]}}",
}  # fmt: skip
"""Recipes by name; adding a mix is adding a line."""

MODEL = Model(layers=2, grid=(2, 2))


@pytest.fixture(params=MIXES)
def mix(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    path = tmp_path / "mix.yaml"
    path.write_text(MIXES[request.param])
    return load_recipe(path)


def engine_of(recipe: Recipe) -> CacheEngine:
    """An engine of the recipe's own regions, for two samples at once."""
    return MODEL.engine(
        layout_of(recipe),
        pipeline_of(recipe),
        batch=2,
        positions=recipe.cache.positions,
        unit=unit_of(recipe),
    )


def test_mix_runs_past_a_full_cache(mix: Recipe) -> None:
    engine = engine_of(mix)
    record = run(engine, write_script(MODEL, [3] * 10, seeds=[1, 2]))
    eager = engine.policy.uses.eager  # lets more go than must
    assert engine.held == engine.layout.budget or (eager and engine.held < engine.layout.budget)
    assert all(len(dropped[0]) for dropped in record.dropped[-1])
    assert all(bool(attended.isfinite().all()) for attended in record.attended)


def test_mix_keeps_the_engines_invariants(mix: Recipe) -> None:
    class MixMachine(EngineMachine):
        def open(self, data: st.DataObject) -> None:
            self.model = MODEL
            self.generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
            self.engine = engine_of(mix)

    run_state_machine_as_test(
        MixMachine,
        settings=settings(
            max_examples=3, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
