"""What the engine works with: a backbone's sizes and rotary embedding, and a cache policy."""

from __future__ import annotations

from typing import Literal, Protocol

import attrs
from torch import Tensor

from tetherflow.cache.checks import Checks
from tetherflow.cache.layout import Layout
from tetherflow.cache.stage_data import Candidates, Draft, Eviction, Slots

Positions = Literal["absolute", "block-relative"]
"""Key positions: a frame's index in the video, or its rank in the view with the query at the tail."""


@attrs.frozen
class CacheShape:
    """What a backbone asks of its cache.

    Attributes:
        layers: transformer layers, each with a cache and decisions of its own.
        heads: attention heads, H.
        head_dim: width of a head, D.
        tokens: tokens of a latent frame, T.
    """

    layers: int
    heads: int
    head_dim: int
    tokens: int


class Rotary(Protocol):
    """A backbone's rotary embedding, in two steps so that phases are computed once for all layers."""

    def phases(self, positions: Tensor) -> Tensor:
        """Phases of frames at temporal positions `[F]`; the first dimension is F."""
        ...

    def turn(self, x: Tensor, phases: Tensor) -> Tensor:
        """Rotate frames `[B, F, T, H, D]` by the phases of F frames."""
        ...


class Policy(Protocol):
    """What the engine asks of a cache policy; `tetherflow.pipeline.Pipeline` is one made of plugins."""

    @property
    def recalls(self) -> bool:
        """Whether evicted units compete for memory."""
        ...

    @property
    def edits(self) -> bool:
        """Whether newcomers are edited before they enter memory."""
        ...

    def check_layout(self, layout: Layout) -> None:
        """Raise LayoutError if the regions do not suit the policy."""

    def evict(self, slots: Slots, count: int, checks: Checks) -> Eviction:
        """Choose what leaves."""
        ...

    def score(self, candidates: Candidates, checks: Checks) -> tuple[Tensor, dict[str, Tensor]]:
        """Score the candidates for memory."""
        ...

    def select(
        self, candidates: Candidates, score: Tensor, scores: dict[str, Tensor], checks: Checks
    ) -> Tensor:
        """Choose the candidates that stay, in ascending order."""
        ...

    def edit(self, draft: Draft, checks: Checks) -> None:
        """Edit the newcomers' draft."""
