"""Denoises one chunk: the few-step passes, then the context pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from tetherflow.backbone import Predictor, Transformer, remember
from tetherflow.cache.engine import CacheEngine
from tetherflow.rollout.schedule import Schedule, clean, renoise

FlowObserver = Callable[[int, Tensor], None]
"""Called with a pass's index and the flow `[B, F, C, H, W]` it predicted; the context pass comes last."""


@attrs.frozen(eq=False)
class Sampler:
    """The re-noising few-step sampler of Self-Forcing (arXiv 2506.08009, algorithm 2).

    Attributes:
        transformer: predicts the flow.
        schedule: timesteps and noise levels.
        context_timestep: timestep of the context pass, in 0..1000.
        dtype: type in which the transformer computes.
    """

    transformer: Transformer
    schedule: Schedule
    context_timestep: float
    dtype: torch.dtype

    def denoise(
        self,
        cache: CacheEngine,
        text: Any,
        noise: Callable[[int], Tensor],
        observe: FlowObserver | None = None,
        predict: Predictor | None = None,
    ) -> Tensor:
        """Generate one chunk and leave it in the cache.

        Args:
            cache: the rollout's cache, between chunks.
            text: what the transformer's `prepare_text` returned for the prompts.
            noise: returns standard normal noise `[B, F, C, H, W]`, float32, for a pass: the chunk's initial
                noise for pass 0, the noise that is added afresh before each later one.
            observe: sees each pass's flow.
            predict: what to call in the transformer's place; it computes the same.

        Returns:
            Clean latents `[B, F, C, H, W]`, float32.
        """
        noisy = noise(0)
        cache.begin(noisy.shape[1])
        latents = noisy
        last = len(self.schedule.sigmas) - 1
        for step, (timestep, sigma) in enumerate(
            zip(self.schedule.timesteps, self.schedule.sigmas, strict=True)
        ):
            flow = self._predict(noisy, timestep, text, cache, predict)
            if observe:
                observe(step, flow)
            latents = clean(noisy, flow, sigma)
            if step < last:
                noisy = renoise(latents, noise(step + 1), self.schedule.sigmas[step + 1])
        self._context(cache, text, latents, observe, predict)
        return latents

    def prefill(self, cache: CacheEngine, text: Any, latents: Tensor) -> None:
        """Take given clean latents `[B, F, C, H, W]` into the cache as one chunk, by a context pass alone."""
        cache.begin(latents.shape[1])
        self._context(cache, text, latents)

    def rewrite(self, cache: CacheEngine, text: Any, latents: Tensor, newer: int) -> None:
        """Write clean latents `[B, F, C, H, W]` that are in the cache anew, `newer` frames before its end."""
        cache.rewrite(latents.shape[1], newer)
        self._remember(latents, text, cache)
        cache.end()

    def _context(
        self,
        cache: CacheEngine,
        text: Any,
        latents: Tensor,
        observe: FlowObserver | None = None,
        predict: Predictor | None = None,
    ) -> None:
        cache.commit()
        if observe:
            observe(len(self.schedule.sigmas), self._predict(latents, self.context_timestep, text, cache))
        else:
            self._remember(latents, text, cache, predict)
        cache.end()

    def _predict(
        self,
        latents: Tensor,
        timestep: float,
        text: Any,
        cache: CacheEngine,
        predict: Predictor | None = None,
    ) -> Tensor:
        model = predict or self.transformer
        return model(latents.to(self.dtype), _timesteps(timestep, latents), text, cache).float()

    def _remember(
        self, latents: Tensor, text: Any, cache: CacheEngine, predict: Predictor | None = None
    ) -> None:
        timesteps = _timesteps(self.context_timestep, latents)
        remember(predict or self.transformer, latents.to(self.dtype), timesteps, text, cache)


def _timesteps(timestep: float, latents: Tensor) -> Tensor:
    """One timestep for every frame, float32 `[B, F]`."""
    return torch.full(latents.shape[:2], timestep, dtype=torch.float32, device=latents.device)
