"""Units leave one layer's cache, to make room for a chunk."""

from __future__ import annotations

import attrs
from torch import Tensor

from tetherflow.cache.answers import Eviction, Selection
from tetherflow.cache.merging import absorb
from tetherflow.cache.recall import recall
from tetherflow.cache.site import Site


@attrs.frozen(eq=False)
class Departure:
    """What a policy lets go of in a layer.

    Attributes:
        leaving: slots of the units that leave, or await a decision about memory, `[B, n]`.
        moved: the first rank at which another unit stands than before.
        rewritten: ranks of the units whose keys were written anew.
        selection: what was decided about memory, if it was.
    """

    leaving: Tensor
    moved: int
    rewritten: range = range(0)
    selection: Selection | None = None

    @property
    def count(self) -> int:
        """How many units leave."""
        return self.leaving.shape[1]


def make_room(site: Site, count: int, shared: Selection | None) -> Departure:
    """Let a policy evict from a layer; the units are still where they were.

    Args:
        site: the layer, without the chunk.
        count: how many units must leave, at least.
        shared: what another layer has decided about memory for this one, too.
    """
    eviction = site.policy.evict(site.slots(), count, site.checks)
    leaving = site.store.at(eviction.ranks)
    if eviction.to == "memory" and site.policy.uses.recall == "begin":
        return _compete(site, leaving, shared)
    if eviction.to == "drop" and site.policy.uses.merge:
        absorb(site, leaving)
        return Departure(leaving, _first(site, eviction), rewritten=site.regions.bank)
    return Departure(leaving, _first(site, eviction))


def _compete(site: Site, newcomers: Tensor, shared: Selection | None) -> Departure:
    """Decide about memory at once: the losers leave, and admitted newcomers stay where they are."""
    decision = recall(site, newcomers, selection=shared, moves=False)
    uses, regions = site.policy.uses, site.regions
    first = regions.bank.start if uses.merge else regions.memory.start
    rewritten = range(first, regions.memory.stop)
    return Departure(decision.losers, first, rewritten, decision.selection)


def _first(site: Site, eviction: Eviction) -> int:
    """The first rank that may be evicted: below it, units keep their ranks and so their rotated keys."""
    ranks = eviction.ranks
    return ranks.start if isinstance(ranks, range) else site.layout.standing
