"""The four stages of a cache policy, as pluggy hook specifications.

An implementation may name just the arguments it needs. The engine calls `evict` as a chunk begins, and
`score`, `select` and `edit` in its context pass, before that layer's attention reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pluggy
from torch import Tensor

from tetherflow.cache.stage_data import Candidates, Draft, Eviction, Slots

PROJECT: Final = "tetherflow"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a stage plugin's method as the implementation of its hook."""


class StageHooks:
    """Every hook that a stage plugin can implement; a plugin implements one."""

    @hookspec(firstresult=True)
    def evict(self, slots: Slots, count: int) -> Eviction:  # type: ignore[empty-body]
        """Choose the units that leave a layer's cache to make room for a chunk.

        Args:
            slots: the layer's units in time order.
            count: how many must leave; at least 1.

        Returns:
            Their ranks, and where they go. A unit of the sink never leaves.
        """

    @hookspec
    def score(self, candidates: Candidates, scores: Mapping[str, Tensor]) -> Tensor:  # type: ignore[empty-body]
        """Score the candidates for memory; scorers run in recipe order and their scores are summed.

        Args:
            candidates: residents and newcomers in time order.
            scores: what earlier scorers returned, by plugin name.

        Returns:
            Floating point `[B, N]`; higher stays.
        """

    @hookspec(firstresult=True)
    def select(  # type: ignore[empty-body]
        self, candidates: Candidates, score: Tensor, scores: Mapping[str, Tensor]
    ) -> Tensor:
        """Choose the candidates that make up memory.

        Args:
            candidates: residents and newcomers in time order.
            score: the sum of all scores, float32 `[B, N]`.
            scores: each scorer's result, by plugin name.

        Returns:
            Indices among the N candidates, int64 `[B, capacity]`, without repeats, in any order.
        """

    @hookspec
    def edit(self, draft: Draft) -> None:
        """Change the newcomers' keys and values before they enter memory; editors run in recipe order.

        Args:
            draft: copies of the newcomers, to be changed in place, with the trusted pool's statistics.
        """
