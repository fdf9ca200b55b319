"""What leaves a cache is worked into its bank."""

from __future__ import annotations

import torch
from torch import Tensor

from tetherflow.cache.site import Site
from tetherflow.cache.stage_data import Bank, Units
from tetherflow.cache.store import LayerStore


def absorb(site: Site, leaving: Tensor) -> None:
    """Let a policy work the units that leave into the bank's, and write these.

    Args:
        site: the layer, its bank full.
        leaving: slots of what leaves, in time order, `[B, n]`.
    """
    store = site.store
    bank = store.at(site.regions.bank)
    units = _units(store, bank)
    draft = Bank(
        layer=site.layer,
        chunk=site.chunk,
        layout=site.layout,
        origins=units.origins,
        keys=units.keys,
        values=units.values,
        metadata=dict(units.metadata),
        leaving=_units(store, leaving),
        first_frame=site.first_frame,
        sides=store.sides,
    )
    site.policy.merge(draft, site.checks)
    store.write(bank, torch.stack([draft.keys, draft.values]))
    store.book.note(bank, draft.metadata)


def _units(store: LayerStore, slots: Tensor) -> Units:
    keys, values = store.read(slots).unbind(dim=0)
    return Units(
        origins=store.unit_origins(slots), keys=keys, values=values, metadata=store.book.metadata(slots)
    )
