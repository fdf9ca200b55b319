"""GRAB: recall by relevance and temporal diversity (TetherCache, arXiv 2606.13035, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from tetherflow import Candidates, Scorer, Selector, StageOptions, hookimpl

RELEVANCE = "relevance"


class Relevance(Scorer):
    """Share of the chunk's attention that each candidate draws.

    a_i = softmax_i(mean over heads, queries and keys of q·k / √d / T). The mean of raw logits is linear in
    both, so it equals mean_h(q̄_h · k̄_{h,i}) / √d, and the pooled queries and keys suffice. The published
    code materialises the logits instead; the result is the same.
    """

    class Options(StageOptions):
        """Options of the relevance scorer."""

        temperature: float = Field(default=1.0, gt=0, description="Softmax temperature T.")

    options: Options
    needs_query = True
    reads_mean_query = True

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        """Attention mass of each candidate, `[B, N]`; sums to 1 over N."""
        scale = candidates.head_dim**0.5 * self.options.temperature
        return candidates.fuse(attention_mass)(candidates.mean_query, candidates.mean_keys, scale)


class TemporalDiversity(Scorer):
    """Reward for candidates that no attended neighbour in time stands in for; needs 'relevance' before it.

    α · max(0, 1 − r_i) with the redundancy r_i = max_{j≠i} a_j · exp(−|i − j| / σ), over origin frames i
    and j, and σ = max(1, half the candidates' extent, newest − oldest + 1 frames).
    """

    class Options(StageOptions):
        """Options of the diversity scorer."""

        alpha: float = Field(default=0.35, ge=0, description="Weight α of diversity beside relevance.")

    options: Options
    needs = (RELEVANCE,)

    @hookimpl
    def score(self, candidates: Candidates, scores: Mapping[str, Tensor]) -> Tensor:
        """Weighted diversity of each candidate, `[B, N]`."""
        alpha = self.options.alpha
        return candidates.fuse(diversity)(candidates.frames, scores[RELEVANCE], alpha)


class TopM(Selector):
    """Keep the M candidates of the highest score; residents and newcomers compete on equal terms."""

    needs_score = True

    @hookimpl
    def select(self, candidates: Candidates, score: Tensor) -> Tensor:
        """Indices of the best candidates, int64 `[B, M]`."""
        return candidates.fuse(best)(score, candidates.capacity)


def best(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores `[B, N]`, `[B, count]`."""
    return score.argsort(dim=1, descending=True, stable=True)[:, :count]


def attention_mass(query: Tensor, keys: Tensor, scale: float | Tensor) -> Tensor:
    """Softmax over candidates of q · k / scale, averaged over heads.

    Args:
        query: mean query, float32 `[B, heads, head_dim]`.
        keys: mean keys, float32 `[B, N, heads, head_dim]`.
        scale: √d · T.

    Returns:
        `[B, N]`.
    """
    logits = (query[:, None] * keys).flatten(2).sum(dim=-1)
    return torch.softmax(logits / (keys.shape[2] * scale), dim=-1)


def diversity(frames: Tensor, relevance: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """α · max(0, 1 − r_i) of candidates from some frames, int64 `[B, N]`, of some relevance `[B, N]`."""
    extent = frames[:, -1] - frames[:, 0] + 1
    sigma = (extent / 2).clamp_min(1)[:, None, None]
    distance = (frames[:, :, None] - frames[:, None, :]).abs()
    index = torch.arange(frames.shape[1], device=frames.device)
    others = index[:, None] != index
    nearness = torch.exp(distance / -sigma) * others
    redundancy = (relevance[:, None, :] * nearness).amax(dim=-1)
    return alpha * (1 - redundancy).clamp_min(0)
