"""Noise levels: the published ones, and the algebra of the re-noising sampler."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tests.golden_traces import GOLDEN
from tetherflow.backbone import SamplerSettings
from tetherflow.rollout.schedule import Schedule, clean, renoise


def test_warped_steps_are_the_published_ones() -> None:
    golden = json.loads((GOLDEN / "golden.json").read_text())
    settings = SamplerSettings(steps=tuple(golden["denoising_steps"]), shift=golden["timestep_shift"])
    assert list(Schedule.of(settings).timesteps) == golden["warped_timesteps"]


def test_levels_are_shifted() -> None:
    """u = 1, ¾, ½, ¼ at shift 5 is 5u / (1 + 4u)."""
    wanted = [5 * u / (1 + 4 * u) for u in (1, 0.75, 0.5, 0.25)]
    assert Schedule.of(SamplerSettings()).sigmas == pytest.approx(wanted, abs=1e-6)


@given(
    steps=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    shift=st.floats(0.5, 10),
    warp=st.booleans(),
)
def test_level_is_that_of_the_nearest_timestep(steps: list[int], shift: float, warp: bool) -> None:
    schedule = Schedule.of(SamplerSettings(steps=steps, shift=shift, warp=warp))
    table = [shift * u / (1 + (shift - 1) * u) for u in (1 - i / 1000 for i in range(1000))]
    assert len(schedule.timesteps) == len(schedule.sigmas) == len(steps)
    for step, timestep, sigma in zip(steps, schedule.timesteps, schedule.sigmas, strict=True):
        u = step / 1000
        assert timestep == pytest.approx(
            1000 * shift * u / (1 + (shift - 1) * u) if warp else step, rel=1e-4, abs=1e-3
        )
        nearest = min(abs(1000 * level - timestep) for level in table)
        assert abs(1000 * sigma - timestep) <= nearest + 1e-2


def test_without_shift_a_level_is_its_step() -> None:
    schedule = Schedule.of(SamplerSettings(steps=(1000, 600, 1), shift=1.0))
    assert schedule.timesteps == pytest.approx((1000, 600, 1), abs=1e-3)
    assert schedule.sigmas == pytest.approx((1, 0.6, 0.001), abs=1e-6)


@given(sigma=st.floats(0.001, 1.0), seed=st.integers(0, 1000))
def test_clean_undoes_renoise(sigma: float, seed: int) -> None:
    """With the flow that leads from latents to noise, what was noised comes back."""
    latents, noise = torch.randn(2, 1, 2, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    noisy = renoise(latents, noise, sigma)
    torch.testing.assert_close(clean(noisy, noise - latents, sigma), latents, atol=1e-5, rtol=1e-5)


def test_full_noise_keeps_nothing_of_the_latents() -> None:
    latents, noise = torch.randn(2, 1, 1, 3, 2, 2)
    assert torch.equal(renoise(latents, noise, 1.0), noise)
    assert torch.equal(renoise(latents, noise, 0.0), latents)


def test_clean_is_computed_in_float64() -> None:
    noisy, flow = torch.full((1,), 1.0), torch.full((1,), 1 / 3)
    assert clean(noisy, flow, 0.9375).item() == torch.tensor(1 - 0.9375 * float(flow.double())).float().item()
    assert clean(noisy, flow, 0.5).dtype == torch.float32
