"""The stages of a cache policy, as pluggy hook specifications.

An implementation may name just the arguments it needs. The engine calls `evict` as a chunk begins; `score`,
`select` and `edit` in its context pass, before that layer's attention reads, or earlier if the evictor says
so; and `merge` whenever units leave for good. Any stage may implement the hooks after these beside its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pluggy
from torch import Tensor

from tetherflow.cache.answers import Eviction, Placement, Revision, Segment, Selection
from tetherflow.cache.events import Event
from tetherflow.cache.layout import Layout
from tetherflow.cache.slots import Slots
from tetherflow.cache.stage_data import Bank, Candidates, Draft

PROJECT: Final = "tetherflow"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a stage plugin's method as the implementation of its hook."""


class StageHooks:
    """Every hook that a stage plugin can implement."""

    @hookspec(firstresult=True)
    def evict(self, slots: Slots, count: int) -> Eviction:  # type: ignore[empty-body]
        """Choose the units that leave a layer's cache to make room for a chunk.

        Args:
            slots: the layer's units in time order.
            count: how many must leave; at least 1. An evictor that declares itself `eager` may let more go.

        Returns:
            Their ranks, and where they go. A unit of the sink or the bank never leaves, nor do the newest
            ones that, with the chunk, fill the recent region (one less for each that leaves beyond need).
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
    ) -> Tensor | Selection:
        """Choose the candidates that make up memory.

        Args:
            candidates: residents and newcomers in time order.
            score: the sum of all scores, float32 `[B, N]`.
            scores: each scorer's result, by plugin name.

        Returns:
            Indices among the N candidates, int64 `[B, capacity]`, without repeats, in any order; or a
            `Selection`, which may blend candidates and note things of them.
        """

    @hookspec
    def edit(self, draft: Draft) -> None:
        """Change the newcomers' keys and values before they enter memory; editors run in recipe order.

        Args:
            draft: the newcomers, to be changed in place, with the trusted pool's statistics.
        """

    @hookspec(firstresult=True)
    def merge(self, bank: Bank) -> None:
        """Work the units that leave the cache into the bank's.

        Args:
            bank: copies of the bank's units, to be changed in place, and of those that leave.
        """

    @hookspec(firstresult=True)
    def place(self, slots: Slots) -> Placement:  # type: ignore[empty-body]
        """Say where in time every unit stands that attention reads.

        Called as a chunk begins, and again after memory was decided in one of its passes; and for each chunk
        that a `recache` writes anew. The queries stand where their own frames' first units do.

        Args:
            slots: the layer's units in time order, the chunk's included (`slots.current`).

        Returns:
            Their temporal positions: whole numbers if they are the same for every sample (cheaper: the engine
            then knows which keys stay where they were), or a tensor of reals `[B, held]`.
        """

    @hookspec(firstresult=True)
    def view(self, slots: Slots) -> Sequence[Segment]:  # type: ignore[empty-body]
        """Say which units each group of heads reads; called when `place` is.

        Args:
            slots: the layer's units in time order, the chunk's included (`slots.current`).

        Returns:
            Segments that share out all heads. What no segment names is held, but not read.
        """

    @hookspec(firstresult=True)
    def revise(self, slots: Slots) -> Revision | None:
        """Change units after the layer's context pass has read them; the next chunk reads what they became.

        Several stages of a policy may do so, in recipe order: each is shown what the pass has left, and where
        two change the same thing of a unit the later one holds.

        Args:
            slots: the layer's units in time order, the chunk's included, with the pass's queries.

        Returns:
            New keys and values, or new metadata, of some units; None if nothing changes. A unit keeps its
            identity, and the sink its keys and values.
        """

    @hookspec(firstresult=True)
    def switch(self, layout: Layout, event: Event) -> int | None:
        """Say what leaves at a prompt switch; later hooks find it in `slots.event` until the chunk has ended.

        Args:
            layout: the regions' sizes, in units.
            event: the switch.

        Returns:
            How many of the newest latent frames stay beside sink and bank; None for the engine's default: all
            of them, or at a flush or cut the newest two.
        """
