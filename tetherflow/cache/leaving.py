"""Units leave one layer's cache, to make room for a chunk or at a prompt switch."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tetherflow.cache.answers import Eviction, Selection
from tetherflow.cache.merging import absorb
from tetherflow.cache.recall import recall
from tetherflow.cache.site import Site


@attrs.frozen(eq=False)
class Departure:
    """What leaving has done to a layer.

    Attributes:
        count: how many units left.
        dropped: origins of those dropped by name, int64 `[B, n]`; none if they await a decision.
        moved: the first rank at which another unit stands than before.
        rewritten: ranks of the units whose keys were written anew.
        selection: what was decided about memory, if it was.
    """

    count: int
    dropped: Tensor
    moved: int
    rewritten: range = range(0)
    selection: Selection | None = None


def make_room(site: Site, count: int, shared: Selection | None) -> Departure:
    """Let a policy evict from a layer, and close the gap.

    Args:
        site: the layer, without the chunk.
        count: how many units must leave, at least.
        shared: what another layer has decided about memory for this one, too.
    """
    eviction = site.policy.evict(site.slots(), count, site.checks)
    if eviction.to == "drop":
        return _drop(site, eviction)
    if site.policy.uses.recall == "begin":
        return _compete(site, eviction, shared)
    return _put_aside(site, eviction)


def flush(site: Site, ranks: range) -> Departure:
    """Drop the units at some ranks."""
    return _leave(site, site.store.at(ranks), ranks.start)


def _drop(site: Site, eviction: Eviction) -> Departure:
    leaving = site.store.at(eviction.ranks)
    if not site.policy.uses.merge:
        return _leave(site, leaving, _first(site, eviction))
    absorb(site, leaving)
    return _leave(site, leaving, _first(site, eviction), rewritten=site.regions.bank)


def _compete(site: Site, eviction: Eviction, shared: Selection | None) -> Departure:
    """Decide about memory at once: the losers leave, and admitted newcomers stay where they are."""
    decision = recall(site, site.store.at(eviction.ranks), selection=shared)
    uses, regions = site.policy.uses, site.regions
    first = regions.bank.start if uses.merge else regions.memory.start
    rewritten = range(first, regions.memory.stop)
    return _leave(site, decision.losers, first, rewritten=rewritten, selection=decision.selection)


def _put_aside(site: Site, eviction: Eviction) -> Departure:
    """Keep what leaves beyond the budget, where attention does not read, until memory is decided."""
    store = site.store
    leaving = store.at(eviction.ranks)
    count, budget = leaving.shape[1], site.layout.budget
    store.move(leaving, torch.arange(budget, budget + count, device=leaving.device).expand_as(leaving))
    store.vacate(leaving, store.order.shape[1])
    return Departure(count, leaving[:, :0], _first(site, eviction))


def _leave(
    site: Site,
    leaving: Tensor,
    moved: int,
    *,
    rewritten: range = range(0),
    selection: Selection | None = None,
) -> Departure:
    dropped = site.store.unit_origins(leaving)
    site.store.vacate(leaving, site.store.order.shape[1])
    return Departure(leaving.shape[1], dropped, moved, rewritten, selection)


def _first(site: Site, eviction: Eviction) -> int:
    """The first rank that may be evicted: below it, units keep their ranks and so their rotated keys."""
    ranks = eviction.ranks
    return ranks.start if isinstance(ranks, range) else site.layout.standing
