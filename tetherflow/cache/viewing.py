"""What one layer's attention reads, and where it stands."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tetherflow.cache.answers import Placement, Segment
from tetherflow.cache.attention import Attention
from tetherflow.cache.site import Site
from tetherflow.cache.store import LayerStore


@attrs.frozen(eq=False)
class Group:
    """Heads that read the same units.

    Attributes:
        heads: their indices, int64 `[h]`.
        slots: slots of the units, those of the current chunk included, `[B, n]`; None if it is all of them.
    """

    heads: Tensor
    slots: Tensor | None

    def read(self, buffer: Tensor, store: LayerStore, held: int) -> Tensor:
        """These heads' part of what `buffer` holds of the units, `[B, n * T, h, D]`."""
        units = buffer[:, :held] if self.slots is None else store.take(buffer, self.slots)
        return units.flatten(1, 2).index_select(2, self.heads)


@attrs.frozen(eq=False)
class View:
    """What attention reads in a layer's passes.

    Attributes:
        phases: of the current chunk's frames, for its queries and keys.
        placement: where every unit stands, if the policy says so.
        groups: what each group of heads reads; all heads read everything if there is none.
    """

    phases: Tensor
    placement: Placement | None = None
    groups: tuple[Group, ...] = ()

    def read(self, store: LayerStore, held: int, query: Tensor, attention: Attention) -> Tensor:
        """Attend from rotated queries `[B, L, H, D]` to the units held."""
        keys, values = store.read_keys, store.values
        if not self.groups:
            return attention(query, keys[:, :held].flatten(1, 2), values[:, :held].flatten(1, 2))
        out = torch.empty_like(query)
        for group in self.groups:
            read = (group.read(buffer, store, held) for buffer in (keys, values))
            out[:, :, group.heads] = attention(query.index_select(2, group.heads), *read)
        return out


def look(site: Site, changed: range, before: View | None) -> View:
    """Bring what a layer's attention reads up to date.

    Args:
        site: the layer, with the current chunk in.
        changed: ranks of units that were rewritten, or whose default position is another than before.
        before: the view until now.
    """
    store, policy, placing = site.store, site.policy, site.placing
    history = site.current.start
    phases, placement = placing.chunk, None
    slots = site.slots() if policy.uses.place or policy.uses.view else None
    if slots is not None and policy.uses.place:
        placement = policy.place(slots, site.checks)
        phases = placing.chunk_at(placement, site.current)
        if before is not None and before.placement is not None and before.phases.shape == phases.shape:
            phases = before.phases.copy_(phases)  # where it is: a recorded pass reads it there
        moved = _first_moved(placement, before.placement if before else None)
        changed = range(min(moved, changed.start) if changed else moved, history)
    if not store.shared:  # else each pass rotates all
        placing.rotate(store, changed, placement)
    if slots is None or not policy.uses.view:
        return View(phases, placement)
    groups = (_group(store, segment, site.current) for segment in policy.view(slots, site.checks))
    return View(phases, placement, tuple(groups))


def _group(store: LayerStore, segment: Segment, current: range) -> Group:
    device = store.order.device
    heads = torch.tensor(segment.heads, dtype=torch.int64, device=device)
    if not isinstance(segment.ranks, Tensor) and len(segment.ranks) == current.start:
        return Group(heads, None)
    chunk = torch.arange(current.start, current.stop, device=device).expand(store.shape.batch, -1)
    return Group(heads, torch.cat([store.at(segment.ranks), chunk], dim=1))


def _first_moved(now: Placement, before: Placement | None) -> int:
    """The first rank that stands elsewhere than before, as far as the host can know."""
    if before is None or isinstance(before, Tensor) or isinstance(now, Tensor):
        return 0
    pairs = zip(now, before, strict=False)
    return next((rank for rank, (a, b) in enumerate(pairs) if a != b), min(len(now), len(before)))
