"""One recall decision: score, select and edit what competes for a layer's memory, then write the result."""

from __future__ import annotations

import torch
from torch import Tensor

from tetherflow.cache.checks import Checks
from tetherflow.cache.interfaces import Policy
from tetherflow.cache.stage_data import Candidates, Draft
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
    slots = torch.cat([sink, members, pending], dim=1)
    competing = slots[:, sink.shape[1] :]
    capacity, newcomers = members.shape[1], pending.shape[1]
    origins = store.unit_origins(competing)
    keys, values = store.statistics(slots)
    candidates = Candidates(
        layer=layer,
        chunk=chunk,
        capacity=capacity,
        residents=capacity,
        origins=origins.clone(),
        mean_keys=keys.mean[:, sink.shape[1] :].clone(),
        mean_query=query.float().mean(dim=(1, 2)),
        read_keys=lambda: store.take(store.keys, competing),
        read_values=lambda: store.take(store.values, competing),
    )
    score, scores = policy.score(candidates, checks)
    chosen = policy.select(candidates, score, scores, checks)
    kept = torch.zeros_like(competing, dtype=torch.bool).scatter_(1, chosen, True)
    admitted = kept[:, capacity:]
    if policy.edits:
        first, last = store.shape.budget, store.shape.budget + newcomers
        draft = Draft(
            layer=layer,
            chunk=chunk,
            origins=origins[:, capacity:].clone(),
            admitted=admitted.clone(),
            keys=store.keys[:, first:last].clone(),
            values=store.values[:, first:last].clone(),
            key_statistics=keys[:, -newcomers:],
            value_statistics=values[:, -newcomers:],
            trusted_keys=keys[:, :-newcomers].pooled(),
            trusted_values=values[:, :-newcomers].pooled(),
            trusted_units=sink.shape[1] + capacity,
        )
        policy.edit(draft, checks)
        store.keys[:, first:last] = draft.keys
        store.values[:, first:last] = draft.values
        store.pool(first, last)
    # Exactly as many are dropped as come: sort those not kept to the front, in time order, members first.
    dropped = kept.to(torch.int8).argsort(dim=1, stable=True)[:, :newcomers]
    store.move(pending, pair_off(pending, admitted, competing.gather(1, dropped)))
    return origins.gather(1, dropped)
