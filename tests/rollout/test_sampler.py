"""The sampler: one chunk's passes, and what they leave in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cache.drive import assert_same, contents
from tests.cache.plugins import tethercache
from tests.rollout.small import LATENT, Small, small_backbone
from tetherflow import Layout
from tetherflow.cache import CacheEngine, Phase
from tetherflow.rollout.sampler import Sampler
from tetherflow.rollout.schedule import Schedule

PROMPT = ["a red circle"]


@pytest.fixture
def backbone(tmp_path: Path) -> Small:
    return small_backbone(tmp_path)


def cache_for(backbone: Small, dtype: torch.dtype = torch.float32) -> CacheEngine:
    return CacheEngine(backbone.cache_shape, Layout(1, 2, 3), tethercache(), backbone.rotary, dtype=dtype)


def sampler_for(backbone: Small, dtype: torch.dtype = torch.float32) -> Sampler:
    settings = backbone.sampler
    return Sampler(backbone.transformer, Schedule.of(settings), settings.context_timestep, dtype)


def text_for(backbone: Small) -> object:
    return backbone.transformer.prepare_text(backbone.encode_prompts(PROMPT))


class Noise:
    """Noise of a seed, which notes the passes that asked for it."""

    def __init__(self, frames: int = 3, seed: int = 0) -> None:
        self.frames, self.asked = frames, list[int]()
        self.generator = torch.Generator().manual_seed(seed)
        self.given: list[Tensor] = []

    def __call__(self, step: int) -> Tensor:
        self.asked.append(step)
        self.given.append(torch.randn(1, self.frames, *LATENT, generator=self.generator))
        return self.given[-1]


def test_passes_are_four_and_a_context_pass(backbone: Small) -> None:
    cache, noise = cache_for(backbone), Noise()
    seen: list[tuple[int, Tensor]] = []
    latents = sampler_for(backbone).denoise(cache, text_for(backbone), noise, lambda *pair: seen.append(pair))
    assert noise.asked == [0, 1, 2, 3]
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4]
    assert all(flow.shape == latents.shape == (1, 3, *LATENT) for _, flow in seen)
    assert latents.dtype == torch.float32
    assert (cache.phase, cache.frames_written) == (Phase.IDLE, 3)


def test_latents_follow_from_the_flows(backbone: Small) -> None:
    """x₀ = x − σ f; the next input is (1 − σ′) x₀ + σ′ ε."""
    noise = Noise()
    flows: list[Tensor] = []
    latents = sampler_for(backbone).denoise(
        cache_for(backbone), text_for(backbone), noise, lambda _, flow: flows.append(flow)
    )
    sigmas = Schedule.of(backbone.sampler).sigmas
    noisy = noise.given[0]
    for step, sigma in enumerate(sigmas):
        result = noisy - sigma * flows[step]
        if step + 1 < len(sigmas):
            noisy = (1 - sigmas[step + 1]) * result + sigmas[step + 1] * noise.given[step + 1]
    torch.testing.assert_close(latents, result, atol=1e-6, rtol=1e-6)


def test_context_pass_runs_on_the_result_at_its_own_timestep(tmp_path: Path) -> None:
    """A pass that sees the result at that timestep predicts the very flow that the context pass did."""
    backbone = small_backbone(tmp_path, context_timestep=40)
    cache = cache_for(backbone)
    text = text_for(backbone)
    flows: list[Tensor] = []
    latents = sampler_for(backbone).denoise(cache, text, Noise(), lambda _, flow: flows.append(flow))
    again = cache_for(backbone)
    again.begin(3)
    flow = backbone.transformer(latents, torch.full((1, 3), 40.0), text, again)
    assert torch.equal(flow, flows[-1])


def test_prefill_leaves_what_generating_leaves(backbone: Small) -> None:
    """Latents that are given fill the cache exactly as if they had just been generated."""
    sampler, text = sampler_for(backbone), text_for(backbone)
    generated, given = cache_for(backbone), cache_for(backbone)
    for seed, frames in enumerate([3, 3, 2, 3]):
        latents = sampler.denoise(generated, text, Noise(frames, seed))
        sampler.prefill(given, text, latents)
        assert torch.equal(generated.origins(), given.origins())
        assert_same(contents(generated), contents(given))


@pytest.mark.parametrize("steps", [(1000,), (1000, 500), (1000, 900, 800, 700, 600, 500)])
def test_any_number_of_steps(tmp_path: Path, steps: tuple[int, ...]) -> None:
    backbone = small_backbone(tmp_path, steps=steps)
    noise = Noise()
    sampler_for(backbone).denoise(cache_for(backbone), text_for(backbone), noise)
    assert noise.asked == list(range(len(steps)))


def test_bfloat16_transformer_leaves_latents_in_float32(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path, dtype=torch.bfloat16)
    cache = cache_for(backbone, torch.bfloat16)
    latents = sampler_for(backbone, torch.bfloat16).denoise(cache, text_for(backbone), Noise())
    assert latents.dtype == torch.float32
    assert cache.contents(0)[0].dtype == torch.bfloat16
    assert bool(latents.isfinite().all())
