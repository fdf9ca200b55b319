"""Prefer short keys: those draw the most attention (arXiv 2406.11430)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from tetherflow import Candidates, Scorer, StageOptions, hookimpl


class KeyNorm(Scorer):
    """Prefer units whose keys are short; needs no query.

    −w · mean over tokens and heads of ‖k‖₂ ("A Simple and Effective L2 Norm-Based Strategy for KV Cache
    Compression", arXiv 2406.11430): keys of a small norm are the ones that attract attention, so those of a
    large norm go first. Rotation leaves the norm as it is, so unrotated keys give the paper's score.

    The paper decides for each head and token. Here all heads share a decision, and a unit of many tokens
    scores their mean; at `unit: token` only the heads are pooled. It compresses neither of the first two
    layers, where norm and attention hardly correlate; here every layer has the same budget, so these are
    decided like the rest. In layers that normalise keys over all heads together, as Wan's do, what differs is
    how a key's length is spread over heads and learned gains.
    """

    class Options(StageOptions):
        """Options of the key-norm scorer."""

        weight: float = Field(default=1.0, gt=0, description="Weight w beside other scores.")

    options: Options
    reads_norms = True
    reads_statistics = False

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        """Minus the weighted mean norm of each candidate's keys, `[B, N]`."""
        return -self.options.weight * candidates.key_norms.mean(dim=2)
