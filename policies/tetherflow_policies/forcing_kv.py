"""Forcing-KV: some heads read little, the others also the bands of the past that changed most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tetherflow import Candidates, Layout, Segment, Selector, Slots, StageOptions, hookimpl
from tetherflow.errors import LayoutError


class ForcingKV(Selector):
    """Keep those bands of the newest past that are least like the next frame's, for dynamic heads alone.

    Forcing-KV (arXiv 2605.09681). Static heads read the sink, the last frame before the chunk, and the chunk;
    dynamic heads read memory as well. Memory is written anew for every chunk: of the units that leave the
    recent region (bands of token rows: `cache.unit`), those stay whose rotated keys have the least cosine
    with the same part of the next frame, over all dynamic heads' channels together, averaged over tokens.
    Layer `decides_at` decides for all later ones. Up to chunk `start` all heads read sink and last frame.

    The paper finds static heads offline: a head is static if at least 0.8 of its attention beyond the first 3
    frames falls on the last 4; `docs/head_profile.py` measures that. The published code decides in the
    context pass; it reads nothing that is not there when the next chunk begins, which is when this decides. A
    prompt switch needs no groups to be dropped: they are made for every chunk.
    """

    class Options(StageOptions):
        """Options of the selector."""

        static_heads: tuple[tuple[int, ...], ...] = Field(
            default=(), description="Static heads of each layer, from layer 0 on; the others are dynamic."
        )
        decides_at: int = Field(default=1, ge=0, description="The layer that decides for all later ones.")
        start: int = Field(default=1, ge=0, description="Last chunk in which all heads read alike.")

    options: Options
    fixed = ("decides_at",)
    when = "begin"  # what has been evicted then still stands where `slots` shows it

    def __init__(self, options: Options | None = None, *, name: str | None = None) -> None:
        super().__init__(options, name=name)
        self.decides_at = self.options.decides_at

    def check_layout(self, layout: Layout) -> None:
        """Refuse regions without a frame before the chunk."""
        if layout.recent < 2:
            raise LayoutError("'forcing-kv' reads the last frame before the chunk; make recent 2 or more")

    @hookimpl
    def select(self, candidates: Candidates) -> Tensor:
        """Indices of the newcomers that changed most; residents stay only where newcomers are too few."""
        change = self._change(candidates.read_slots(), candidates.origins.shape[1] - candidates.residents)
        residents = torch.full_like(candidates.origins[:, : candidates.residents], -2, dtype=torch.float32)
        return torch.cat([residents, change], dim=1).topk(candidates.capacity, dim=1).indices

    @hookimpl
    def view(self, slots: Slots) -> Sequence[Segment]:
        """Sink and last frame for static heads, everything for dynamic ones."""
        history = slots.current.start
        last = range(max(len(slots.regions.sink), history - slots.layout.parts), history)
        few = [*(rank for rank in slots.regions.sink if rank < history), *last]
        heads = range(slots.like.shape[2])
        if slots.chunk <= self.options.start:
            return [Segment(heads, few)]
        static, dynamic = self._split(slots)
        groups = [(static, few), (dynamic, range(history))]
        return [Segment(group, ranks) for group, ranks in groups if group]

    def _change(self, slots: Slots, newcomers: int) -> Tensor:
        """How unlike the same part of the next frame each newcomer is, −cosine `[B, n]`."""
        first, parts = slots.regions.recent.start, slots.layout.parts
        ranks = range(first, min(first + newcomers + parts, slots.held))
        _, dynamic = self._split(slots)
        keys = slots.read_keys(ranks)
        keys = slots.rotate(keys, slots.frames[:, first : ranks.stop], slots.parts[:, first : ranks.stop])[
            ..., dynamic, :
        ]
        tokens = keys.float().flatten(3)  # [B, n + parts, T, channels of the dynamic heads]
        here, after = tokens[:, :newcomers], tokens[:, parts:]
        if after.shape[1] < newcomers:  # no frame follows the newest: it counts as unchanged
            after = torch.cat([after, here[:, after.shape[1] :]], dim=1)
        return -functional.cosine_similarity(here, after, dim=-1).mean(dim=-1)

    def _split(self, slots: Slots) -> tuple[list[int], list[int]]:
        """Static and dynamic heads of a layer."""
        heads, named = range(slots.like.shape[2]), self.options.static_heads
        chosen = named[slots.layer] if slots.layer < len(named) else ()
        if unknown := [head for head in chosen if head not in heads]:
            raise LayoutError(f"no static head {unknown[0]} in layer {slots.layer}, which has {len(heads)}")
        return [head for head in heads if head in chosen], [head for head in heads if head not in chosen]
