"""One recall decision: score, select, edit and blend what competes for a layer's memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import attrs
import torch
from torch import Tensor

from tetherflow.cache.answers import Selection
from tetherflow.cache.brought import Brought
from tetherflow.cache.known import Known
from tetherflow.cache.merging import absorb
from tetherflow.cache.newcomers import Newcomers
from tetherflow.cache.site import Site
from tetherflow.cache.slots import Lazy
from tetherflow.cache.stage_data import Candidates, Draft
from tetherflow.cache.statistics import Statistics, pooled
from tetherflow.cache.store import LayerStore


@attrs.frozen(eq=False)
class Decision:
    """What became of the candidates.

    Attributes:
        selection: the policy's answer; `keep` in ascending order.
        losers: slots of the candidates that leave, in time order, `[B, n]`: as many as came.
        dropped: their origins, likewise.
    """

    selection: Selection
    losers: Tensor
    dropped: Tensor


def recall(
    site: Site,
    newcomers: Tensor,
    brought: Brought | None = None,
    selection: Selection | None = None,
    known: Known | None = None,
    *,
    moves: bool,
) -> Decision:
    """Decide which residents and newcomers make up memory, and edit and blend them.

    Shapes never depend on the decision, so nothing here waits for the device.

    Args:
        site: the layer, its memory full.
        newcomers: slots of the evicted units in time order, `[B, n]`.
        brought: what the pass brings; None as a chunk begins.
        selection: what another layer has decided for this one, too.
        known: what is known of the layer's units, if it has been looked up.
        moves: whether the newcomers wait past the budget, and those that are admitted move to the losers'
            slots; else they stay where they are.
    """
    store, policy = site.store, site.policy
    standing, trusted = site.regions.memory.start, site.regions.memory.stop
    order, pools = store.at(range(trusted)), policy.uses.edit
    units = known or Known.of(store.book, order, newcomers, standing, pools=pools, fuse=store.fuse)
    competing, capacity = units.slots[:, standing:], trusted - standing

    @cache
    def statistics() -> Statistics:
        """Of sink, bank, memory and newcomers, keys and values."""
        return store.statistics(units.slots) if units.statistics is None else units.statistics

    def mean_keys() -> Tensor:
        return statistics().mean[:, standing:, 0].clone() if units.mean_keys is None else units.mean_keys

    @cache
    def compared() -> Newcomers:
        own, pool = statistics()[:, trusted:], units.pool
        if pool is None:
            before = statistics()[:, :trusted]
            pool = Statistics(*store.fuse(pooled)(before.mean, before.variance))
        return Newcomers(own[:, :, 0], own[:, :, 1], pool[:, 0], pool[:, 1], trusted)

    if selection is None:
        selection = _decide(site, units, capacity, brought, mean_keys, compared)
    kept, losers, dropped, targets = store.fuse(_outcome)(
        competing, selection.keep, newcomers, store.book.origins
    )
    before = compared() if policy.uses.edit else None
    if policy.uses.merge:
        absorb(site, losers)  # as they are: an edit is for those that are admitted
    if selection.metadata:
        store.book.note(competing.gather(1, selection.keep), selection.metadata)
    edited = None
    if before is not None:
        fed = kept if selection.weights is None else (selection.weights != 0).any(dim=1)
        edited = _edit(site, newcomers, units.origins[:, trusted:], fed[:, capacity:], before, waiting=moves)
    if not moves or selection.weights is not None:
        if edited is not None:
            store.write(newcomers, edited)
        if selection.weights is not None:
            _blend(store, competing, selection.keep, selection.weights)
    if not moves:
        return Decision(selection, losers, dropped)
    if edited is None or selection.weights is not None:
        store.book.move(newcomers, targets)
        store.relocate(newcomers, targets)
        return Decision(selection, losers, dropped)
    store.book.move(newcomers, targets, statistics=False)
    store.round(edited)
    store.relocate(newcomers, targets)
    site.beside.later(partial(store.write_statistics, targets, edited))
    return Decision(selection, losers, dropped)


def _outcome(
    competing: Tensor, keep: Tensor, newcomers: Tensor, origins: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Who is kept, who is not, and where newcomers go.

    Args:
        competing: slots of the candidates, `[B, N]`, the newcomers last.
        keep: indices of those that are kept, `[B, M]`.
        newcomers: slots `[B, n]`.
        origins: serial numbers by slot, `[B, slots]`.

    Returns:
        Whether each candidate is kept, bool `[B, N]`; slots of as many that are not as came, `[B, n]`; their
        serial numbers; and a slot for each newcomer `[B, n]`, of a loser if it is kept and its own if not.
    """
    count = newcomers.shape[1]
    marks = torch.zeros_like(competing, dtype=torch.int8).scatter_(1, keep, 1)
    # Exactly as many lose as come: sort those not kept to the front, in time order, residents first.
    losers = competing.gather(1, marks.argsort(dim=1, stable=True)[:, :count])
    # Newcomers that are kept fill the first of these slots. The last are those of newcomers that are not.
    first = marks[:, -count:].argsort(dim=1, stable=True, descending=True)
    targets = torch.empty_like(losers).scatter_(1, first, losers)
    return marks.to(torch.bool), losers, origins.gather(1, losers), targets


def _decide(
    site: Site,
    known: Known,
    capacity: int,
    brought: Brought | None,
    mean_keys: Callable[[], Tensor],
    newcomers: Callable[[], Newcomers],
) -> Selection:
    """Score the candidates and select among them."""
    store, policy, standing = site.store, site.policy, site.regions.memory.start
    competing = known.slots[:, standing:]
    query: Lazy | None = None
    mean_query: Lazy | None = None
    if brought is not None:
        query = brought.shown
        mean_query = brought.mean_query if policy.uses.mean_query else lambda: brought.mean_query
    candidates = Candidates(
        layer=site.layer,
        chunk=site.chunk,
        capacity=capacity,
        residents=capacity,
        origins=known.origins[:, standing:],
        layout=site.layout,
        first_frame=site.first_frame,
        metadata=store.book.metadata(competing),
        sides=store.sides,
        mean_keys=mean_keys() if policy.uses.statistics else mean_keys,
        mean_query=mean_query,
        query=query,
        key_norms=lambda: store.key_norms(competing),
        read_keys=lambda: store.take(store.keys, competing),
        read_values=lambda: store.take(store.values, competing),
        read_slots=lambda: site.slots(query),
        newcomers=newcomers,
        fuse=store.fuse,
    )
    score, scores = policy.score(candidates, site.checks)
    return policy.select(candidates, score, scores, site.checks)


def _edit(
    site: Site, newcomers: Tensor, origins: Tensor, admitted: Tensor, before: Newcomers, *, waiting: bool
) -> Tensor:
    """The newcomers' keys and values `[2, B, n, T, H, D]` as the policy edits a draft of them.

    Units that wait past the budget are nobody else's, so that they are their own draft; others are copied.
    """
    store = site.store
    units = store.waiting_units(newcomers.shape[1]) if waiting else store.read(newcomers)
    keys, values = units.unbind(dim=0)
    draft = Draft(
        layer=site.layer,
        chunk=site.chunk,
        origins=origins,
        admitted=admitted,
        keys=keys,
        values=values,
        key_statistics=before.keys,
        value_statistics=before.values,
        trusted_keys=before.trusted_keys,
        trusted_values=before.trusted_values,
        trusted_units=before.trusted_units,
        first_frame=site.first_frame,
        fuse=store.fuse,
        sides=store.sides,
    )
    site.policy.edit(draft, site.checks)
    if draft.keys is not keys or draft.values is not values:
        units.copy_(torch.stack([draft.keys, draft.values]))
    return units


def _blend(store: LayerStore, competing: Tensor, keep: Tensor, weights: Tensor) -> None:
    """Write Σ_n weights[m, n] · unit n to the slot of each kept unit m, keys and values alike."""
    weights = weights.to(torch.float32)
    # In float32, so that a weight of 1 beside zeros leaves a unit as it is, bit for bit.
    units = [
        torch.bmm(weights, store.take(buffer, competing).float().flatten(2))
        .to(buffer.dtype)
        .unflatten(2, buffer.shape[2:])
        for buffer in (store.keys, store.values)
    ]
    store.write(competing.gather(1, keep), torch.stack(units))
