"""What the engine works with: a backbone's sizes and rotary embedding, and a cache policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import attrs
from torch import Tensor

from tetherflow.cache.answers import (
    Eviction,
    Placement,
    Revision,
    Segment,
    Selection,
    SideShape,
    SideStore,
    When,
)
from tetherflow.cache.checks import Checks
from tetherflow.cache.events import Event
from tetherflow.cache.layout import Layout
from tetherflow.cache.slots import Slots
from tetherflow.cache.stage_data import Bank, Candidates, Draft
from tetherflow.errors import LayoutError

Positions = Literal["absolute", "block-relative"]
"""Key positions unless a policy places them: a frame's index in the video, or its rank in the view with the
query at the tail."""

Unit = Literal["frame", "token"] | int
"""What the cache keeps or drops as a whole: a latent frame, a token, or a band of so many token rows."""


@attrs.frozen
class CacheShape:
    """What a backbone asks of its cache.

    Attributes:
        layers: transformer layers, each with a cache and decisions of its own.
        heads: attention heads, H.
        head_dim: width of a head, D.
        tokens: tokens of a latent frame, T.
        rows: rows in which they stand; 1 if the backbone does not say.
    """

    layers: int
    heads: int
    head_dim: int
    tokens: int
    rows: int = 1

    def parts(self, unit: Unit) -> int:
        """How many units make up a latent frame.

        Raises:
            LayoutError: Bands of so many rows do not divide a frame.
        """
        if unit == "frame":
            return 1
        if unit == "token":
            return self.tokens
        if unit < 1 or self.rows % unit:
            raise LayoutError(
                f"bands of {unit} token rows do not divide a frame of {self.rows}; "
                f"take one of {', '.join(str(n) for n in range(1, self.rows + 1) if self.rows % n == 0)}"
            )
        return self.rows // unit


class Rotary(Protocol):
    """A backbone's rotary embedding, in two steps so that phases are computed once for all layers."""

    def phases(self, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Phases of frames at temporal positions `[F]` or `[B, F]`, which are the result's first dimensions.

        Args:
            positions: of any real type.
            tokens: which tokens of each frame, int64 `[B, F, T]`; all of them if omitted.
        """
        ...

    def turn(self, x: Tensor, phases: Tensor) -> Tensor:
        """Rotate frames `[B, F, T, H, D]`, or some tokens of them, by phases of F frames, shared or not."""
        ...


class Unpacks(Protocol):
    """Takes apart what one product of a backbone gives: the module that computed it."""

    def query_of(self, packed: Tensor) -> Tensor:
        """Normalised queries `[B, L, H, D]`, of queries, keys and values `[B, L, 3, H, D]`."""
        ...

    def key_value_of(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised keys, and values, likewise."""
        ...


@runtime_checkable
class Writes(Unpacks, Protocol):
    """May have a kernel that takes apart, rotates and writes to where things go, all in one."""

    def write(
        self,
        packed: Tensor,
        rotary: Rotary,
        phases: Tensor,
        keys: Tensor,
        values: Tensor,
        plain: Tensor | None,
        *,
        coarse: bool,
    ) -> Tensor | None:
        """Write a pass's rotated keys, and its values, to their slots, and rotate its queries.

        Args:
            packed: queries, keys and values `[B, L, 3, H, D]`.
            rotary: what the phases are of.
            phases: of the pass's frames.
            keys: the slots of what attention reads, `[B, L, H, D]`.
            values: likewise, of values.
            plain: likewise, of normalised unrotated keys, if they are written, too.
            coarse: whether rotated keys and values are rounded (`cache.rounding`).

        Returns:
            The rotated queries `[B, L, H, D]`; None, and nothing is written, if there is no such kernel.
        """
        ...


@attrs.frozen
class Uses:
    """What of the engine's vocabulary a policy uses; what it does not use costs nothing.

    Attributes:
        recall: when evicted units compete for memory; None if they are dropped.
        edit: whether newcomers are edited before they enter memory.
        blend: whether memory's units may become sums of candidates.
        merge: whether a bank takes in what is dropped.
        place: whether read positions are the policy's.
        view: whether heads read what the policy says.
        revise: whether units may change after the context pass.
        eager: whether more units may leave than must.
        raw: whether unrotated keys are read.
        statistics: whether units' statistics are read in every decision, so that keeping them pays.
        key_norms: whether the norms of units' keys are read in every decision, likewise.
        mean_query: whether the mean of a pass's queries is read in every decision, so that it is made first.
        decides_at: the layer whose choice all later ones share; None if each decides alone.
        metadata: what is noted of each unit: name, and the value of a new one.
        whole_frames: the stage that takes no units smaller than a frame, if there is one.
    """

    recall: When | None = None
    edit: bool = False
    blend: bool = False
    merge: bool = False
    place: bool = False
    view: bool = False
    revise: bool = False
    eager: bool = False
    raw: bool = False
    statistics: bool = False
    key_norms: bool = False
    mean_query: bool = False
    decides_at: int | None = None
    metadata: Mapping[str, float] = attrs.field(factory=dict)
    whole_frames: str | None = None


class Policy(Protocol):
    """What the engine asks of a cache policy; `tetherflow.pipeline.Pipeline` is one made of plugins."""

    @property
    def uses(self) -> Uses:
        """What of the engine's vocabulary it uses."""
        ...

    def check_layout(self, layout: Layout) -> None:
        """Raise LayoutError if the regions do not suit the policy."""

    def side_stores(self, shape: SideShape) -> Mapping[str, Mapping[str, SideStore]]:
        """What each stage keeps beside the cache, by the stage's name and the store's."""
        ...

    def evict(self, slots: Slots, count: int, checks: Checks) -> Eviction:
        """Choose what leaves."""
        ...

    def score(self, candidates: Candidates, checks: Checks) -> tuple[Tensor, dict[str, Tensor]]:
        """Score the candidates for memory."""
        ...

    def select(
        self, candidates: Candidates, score: Tensor, scores: dict[str, Tensor], checks: Checks
    ) -> Selection:
        """Choose the candidates that stay, in ascending order."""
        ...

    def edit(self, draft: Draft, checks: Checks) -> None:
        """Edit the newcomers' draft."""

    def merge(self, bank: Bank, checks: Checks) -> None:
        """Work what leaves into the bank's draft."""

    def place(self, slots: Slots, checks: Checks) -> Placement:
        """Say where in time every unit stands."""
        ...

    def view(self, slots: Slots, checks: Checks) -> tuple[Segment, ...]:
        """Say what each group of heads reads."""
        ...

    def revise(self, slots: Slots, checks: Checks) -> Sequence[Revision]:
        """Change units after the context pass has read them; of two changes of one thing the later holds."""
        ...

    def switch(self, layout: Layout, event: Event) -> int | None:
        """Say how many of the newest latent frames stay at a prompt switch; the default if None."""
        ...


def fitted(layout: Layout, policy: Policy, shape: CacheShape, unit: Unit, chunk_frames: int) -> Layout:
    """A cache's regions, given in latent frames, in units, once nothing speaks against them.

    Raises:
        LayoutError: The regions or the unit do not suit the policy, a chunk of so many frames is larger than
            the recent region, or units do not divide a frame.
    """
    policy.check_layout(layout)
    layout.check_chunk(chunk_frames)
    parts = shape.parts(unit)
    if parts > 1 and policy.uses.whole_frames is not None:
        raise LayoutError(f"'{policy.uses.whole_frames}' keeps whole frames; set the cache's unit to frame")
    return layout.in_units(parts)
