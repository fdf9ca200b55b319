"""One recall decision: score, select and edit what competes for a layer's memory, then write the result."""

from __future__ import annotations

import torch
from torch import Tensor

from tetherflow.cache.checks import Checks
from tetherflow.cache.interfaces import Policy
from tetherflow.cache.stage_data import Candidates, Draft
from tetherflow.cache.statistics import Statistics
from tetherflow.cache.store import LayerStore, pair_off


def recall(
    store: LayerStore,
    policy: Policy,
    checks: Checks,
    layer: int,
    chunk: int,
    query: Tensor,
    sink: Tensor,
    members: Tensor,
    pending: Tensor,
) -> Tensor:
    """Decide which members and pending units make up memory, and write the newcomers into members' slots.

    Shapes never depend on the decision, so nothing here waits for the device.

    Args:
        store: the layer's buffers.
        policy: scores, selects and edits.
        checks: takes the conditions on the policy's results.
        layer: index of the layer.
        chunk: index of the chunk.
        query: unrotated queries of the context pass, `[B, F, T, H, D]`.
        sink: slots of the sink in time order, `[B, s]`.
        members: slots of memory in time order, `[B, M]`.
        pending: slots of the pending units in time order, `[B, n]`.

    Returns:
        Origins of the units dropped, int64 `[B, n]`.
    """
    slots = torch.cat([members, pending], dim=1)
    capacity, newcomers = members.shape[1], pending.shape[1]
    origins = store.unit_origins(slots)
    candidates = Candidates(
        layer=layer,
        chunk=chunk,
        capacity=capacity,
        residents=capacity,
        origins=origins.clone(),
        mean_keys=store.take(store.pooled["key_mean"], slots),
        mean_query=query.float().mean(dim=(1, 2)),
        read_keys=lambda: store.take(store.keys, slots),
        read_values=lambda: store.take(store.values, slots),
    )
    score, scores = policy.score(candidates, checks)
    chosen = policy.select(candidates, score, scores, checks)
    kept = torch.zeros_like(slots, dtype=torch.bool).scatter_(1, chosen, True)
    admitted = kept[:, capacity:]
    draft = _draft(store, layer, chunk, pending, admitted, trusted=torch.cat([sink, members], dim=1))
    policy.edit(draft, checks)
    first, last = int(store.shape.budget), int(store.shape.budget) + newcomers
    store.keys[:, first:last] = draft.keys
    store.values[:, first:last] = draft.values
    store.write_pooled(first, last, draft.keys, draft.values)
    # Exactly as many are dropped as come: sort those not kept to the front, in time order.
    dropped = kept.to(torch.int8).argsort(dim=1, stable=True)[:, :newcomers]
    store.move(pending, pair_off(pending, admitted, members, ~kept[:, :capacity]))
    return origins.gather(1, dropped)


def _draft(
    store: LayerStore, layer: int, chunk: int, pending: Tensor, admitted: Tensor, trusted: Tensor
) -> Draft:
    """Copies of the pending units, with statistics of their own and of the trusted pool."""
    return Draft(
        layer=layer,
        chunk=chunk,
        origins=store.unit_origins(pending),
        admitted=admitted.clone(),
        keys=store.take(store.keys, pending),
        values=store.take(store.values, pending),
        key_statistics=store.key_statistics(pending),
        value_statistics=store.value_statistics(pending),
        trusted_keys=Statistics.pooled(store.key_statistics(trusted)),
        trusted_values=Statistics.pooled(store.value_statistics(trusted)),
        trusted_units=int(trusted.shape[1]),
    )
