"""A small model, regions and a scorer for tests of the pipeline."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.cache.drive import Sizes
from tetherflow import Candidates, Layout, Scorer, hookimpl

SIZES = Sizes(layers=2, heads=1, head_dim=4, grid=(1, 2))
LAYOUT = Layout(1, 2, 3)
FILLING = [3, 3]
"""Chunks after which the cache is full, so that the next one (chunk 2) asks every stage."""


class Flat(Scorer):
    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return torch.zeros(candidates.origins.shape)
