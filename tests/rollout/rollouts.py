"""Rollouts of the small backbone under TetherCache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.cache.plugins import tethercache
from tests.rollout.small import Small
from tetherflow import Layout
from tetherflow.pipeline import Pipeline
from tetherflow.rollout.session import Chunk, Session

PROMPTS = ["a red circle", "a blue square bounces on a green field", "two shapes"]
LAYOUT = Layout(1, 2, 4)


def session_for(backbone: Small, policy: Pipeline | None = None, **options: Any) -> Session:
    return Session(backbone, LAYOUT, policy or tethercache(), **options)


def latents_of(chunks: Sequence[Chunk]) -> Tensor:
    return torch.cat([chunk.latents for chunk in chunks], dim=1)


def rollout(
    session: Session,
    latent_frames: int = 18,
    prompts: Sequence[str] = PROMPTS[:1],
    seeds: Sequence[int] = (0,),
    first_latents: Tensor | None = None,
) -> list[Chunk]:
    return list(
        session.stream(
            prompts, latent_frames=latent_frames, seeds=seeds, first_latents=first_latents, decode=False
        )
    )
