"""Units change where they are, once the context pass has read them."""

from __future__ import annotations

import torch

from tetherflow.cache.brought import Brought
from tetherflow.cache.site import Site
from tetherflow.cache.viewing import View


def revise(site: Site, view: View, brought: Brought) -> None:
    """Let a policy change a layer's units, and rotate the new keys to where they stand.

    All of its stages are asked before anything changes: each sees what the context pass has left.

    Args:
        site: the layer, after its context pass has attended.
        view: what it attended over.
        brought: what the pass brings.
    """
    for revision in site.policy.revise(site.slots(brought.shown), site.checks):
        slots = site.store.at(revision.ranks)
        site.store.book.note(slots, revision.metadata)
        if revision.keys is not None and revision.values is not None:
            site.store.write(slots, torch.stack([revision.keys, revision.values]))
            site.placing.rotate(site.store, revision.ranks, view.placement)
