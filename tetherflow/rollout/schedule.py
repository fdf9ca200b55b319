"""Noise levels of the few-step sampler."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from tetherflow.backbone import SamplerSettings

TRAIN_STEPS = 1000


@attrs.frozen(eq=False)
class Schedule:
    """Timesteps of the denoising passes and their noise levels.

    Attributes:
        timesteps: what the transformer is told, in 0..1000, one a pass.
        sigmas: share of noise in each pass's input, in 0..1.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @classmethod
    def of(cls, settings: SamplerSettings) -> Schedule:
        """The schedule of some settings: a warped step n is the t of level u = n/1000, others are t."""
        if not settings.warp:
            return cls.at(settings.steps, settings.shift)
        table = TRAIN_STEPS * _levels(settings.shift)
        steps = torch.cat([table, torch.zeros(1)])[TRAIN_STEPS - torch.tensor(settings.steps)]
        return cls.at(steps.tolist(), settings.shift)

    @classmethod
    def at(cls, timesteps: Sequence[float], shift: float) -> Schedule:
        """The schedule of given timesteps; σ is looked up at the nearest t of the 1000 shifted levels."""
        sigmas = _levels(shift)
        steps = torch.tensor(timesteps, dtype=torch.float32)
        nearest = (TRAIN_STEPS * sigmas[None] - steps[:, None]).abs().argmin(dim=1)
        return cls(tuple(steps.tolist()), tuple(sigmas[nearest].tolist()))


def _levels(shift: float) -> Tensor:
    """Levels u = 1, 0.999, … shifted to σ = s·u / (1 + (s − 1)·u), in float32 as published; t = 1000 σ."""
    u = torch.linspace(1, 0, TRAIN_STEPS + 1)[:-1]
    return shift * u / (1 + (shift - 1) * u)


def clean(noisy: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """Clean latents implied by a flow, x₀ = x − σ f, computed in float64 and returned in the flow's type."""
    return (noisy.double() - sigma * flow.double()).type_as(flow)


def renoise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Latents at noise level σ, (1 − σ) x₀ + σ ε."""
    return ((1 - sigma) * latents + sigma * noise).type_as(noise)
