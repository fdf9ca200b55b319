"""FadeMem: memory that grows coarser with age."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tetherflow import Candidates, Layout, Placement, Selection, Selector, Slots, StageOptions, hookimpl
from tetherflow.errors import LayoutError

SPAN, SHIFT = "span", "shift"


class FadeMem(Selector):
    """Merge those neighbours in memory that lie nearest to one another at a distance that fades with age.

    Distance-aware consolidation (FadeMem, arXiv 2606.10671). Each memory unit stands for `span` frames around
    its centre. While there are too many, of all adjacent pairs but the newest the one with the least
    |u_i − u_{i+1}| is merged, u = age^power, age = frames from the unit's centre to the live window: keys
    and values with weights ∝ span^weight, the centre to the span-weighted mean, rounded; spans add up. The
    video's first frame, the anchor, absorbs its neighbours without changing.

    Read positions keep to those of training (`window`): the chunk at their end, right before it as many of
    the newest units as it has frames, the anchor at 0, and between them each unit at the gap nearest to its
    age, all gaps different and in order. Until the video fills the window, units stand at their centres.

    Left out of the published code: it stops with a NameError at its first merge.
    """

    class Options(StageOptions):
        """Options of the selector."""

        power: float = Field(default=0.3, gt=0, le=1, description="Exponent of the age, in u = age^power.")
        weight: float = Field(
            default=0.5, ge=0, le=1, description="Exponent of the span in a merge's weights."
        )
        window: int = Field(default=21, ge=1, description="Temporal positions that the model was trained on.")

    options: Options
    fixed = ("window",)
    metadata: ClassVar[Mapping[str, float]] = {SPAN: 1.0, SHIFT: 0.0}
    blends = True
    decides_at = 0  # ages are the same in every layer

    def check_layout(self, layout: Layout) -> None:
        """Refuse a memory in which nothing may merge, or a cache that outgrows the positions."""
        if layout.memory < 2:
            raise LayoutError(
                f"'fademem' never merges the newest pair; give it 2 frames of memory, not {layout.memory}"
            )
        if layout.sink or layout.bank:
            raise LayoutError("'fademem' keeps its own anchor in memory; set sink and bank to 0")
        if layout.budget > self.options.window:
            raise LayoutError(
                f"'fademem' places {layout.budget} frames at {self.options.window} positions; make the "
                "budget smaller or the window larger"
            )

    @hookimpl
    def select(self, candidates: Candidates) -> Selection:
        """Merge until `capacity` units are left, each a row of weights over the candidates."""
        frames = candidates.frames
        batch, count = frames.shape
        keep = torch.arange(count, device=frames.device).expand(batch, -1)
        weights = torch.eye(count, device=frames.device).expand(batch, -1, -1)
        centre = frames + candidates.metadata[SHIFT]
        span = candidates.metadata[SPAN]
        live = frames[:, -1:] + 1
        while count > candidates.capacity:
            u = (live - centre).clamp_min(1) ** self.options.power
            older = (u[:, :-2] - u[:, 1:-1]).abs().argmin(dim=1, keepdim=True)  # of the pair that merges
            anchored = frames.gather(1, keep.gather(1, older)) == 0
            mass = span**self.options.weight
            centre = _merged(centre, span, older, anchored).round()
            weights = _merged(weights, mass, older, anchored)
            span = _joined(span, older, span.gather(1, older) + span.gather(1, older + 1))
            keep = _joined(keep, older, keep.gather(1, older))
            count -= 1
        return Selection(keep, weights, {SPAN: span, SHIFT: centre - frames.gather(1, keep)})

    @hookimpl
    def place(self, slots: Slots) -> Placement:
        """Put the chunk at the window's end, and the others at their faded distances before it."""
        if slots.layout.parts > 1:
            raise LayoutError("'fademem' merges whole frames; set the cache's unit to frame")
        chunk = len(slots.current)
        first = self.options.window - chunk
        history = slots.current.start
        age = slots.first_frame - (slots.frames + slots.metadata[SHIFT])[:, :history]
        place = torch.arange(history, device=age.device)  # 0 is the oldest
        least = history - place
        gap = age.clamp(1, first)
        if slots.first_frame >= first:
            gap = torch.where(place < history - chunk, gap, least)
        # From the newest on, gaps grow by at least 1; the oldest has the largest, at most `first`.
        gap = (gap - least).flip(1).cummax(dim=1).values.flip(1) + least
        gap = gap.minimum(first - place)
        now = torch.arange(first, self.options.window, device=age.device).expand(len(age), -1)
        return torch.cat([first - gap, now], dim=1)


def _joined(x: Tensor, older: Tensor, joint: Tensor) -> Tensor:
    """`x` `[B, n]` or `[B, n, N]` with entries `older` and `older + 1` replaced by the one entry `joint`."""
    place = torch.arange(x.shape[1] - 1, device=x.device).expand(x.shape[0], -1)
    source = place + (place > older)
    if x.dim() == 3:
        source, older = (index[..., None].expand(-1, -1, x.shape[2]) for index in (source, older))
        return x.gather(1, source).scatter(1, older, joint)
    return x.gather(1, source).scatter(1, older, joint)


def _merged(x: Tensor, mass: Tensor, older: Tensor, anchored: Tensor) -> Tensor:
    """`x` with the pair replaced by its mean by mass, or by its older unit where that is the anchor."""
    share = mass.gather(1, older + 1) / (mass.gather(1, older) + mass.gather(1, older + 1))
    share = share.masked_fill(anchored, 0)
    pair = [older, older + 1]
    if x.dim() == 3:
        pair = [index[..., None].expand(-1, -1, x.shape[2]) for index in pair]
        share = share[..., None]
    return _joined(x, older, torch.lerp(x.gather(1, pair[0]), x.gather(1, pair[1]), share))
