"""Checks of what stage plugins return: of its form at once, of its values through `Checks`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from tetherflow.cache.answers import Eviction, Placement, Ranks, Revision, Segment, Selection
from tetherflow.cache.checks import Checks
from tetherflow.cache.slots import Slots
from tetherflow.cache.stage_data import Candidates
from tetherflow.errors import StageError
from tetherflow.stages import Evictor, Selector

Fail = Callable[[str], StageError]
"""Makes an error that names the stage and where it ran."""

ROUNDING: Final = 1e-3
"""How far a row of weights may stray from 1; float16 rounds this much."""


def eviction_of(
    value: object, stage: Evictor, slots: Slots, count: int, fail: Fail, checks: Checks
) -> Eviction:
    """Check an evictor's choice of `count` units, or more if it is eager; ranks come back in order."""
    if not isinstance(value, Eviction):
        raise fail(f"returned {kind_of(value)}; expected an Eviction")
    if value.to != stage.destination:
        raise fail(f"sends units to '{value.to}' but declares destination '{stage.destination}'")
    layout, ranks, eager = slots.layout, value.ranks, stage.eager
    if not isinstance(ranks, range):
        columns = ranks.shape[-1] if eager and isinstance(ranks, Tensor) and ranks.dim() else count
        ranks = indices_of(ranks, (slots.origins.shape[0], max(columns, count)), slots.origins, fail)
    elif ranks.step != 1 or len(ranks) < count or (len(ranks) > count and not eager):
        many = f"{count} or more" if eager else str(count)
        raise fail(f"returned {ranks}; expected {many} ranks in ascending order, step 1")
    leaving = len(ranks) if isinstance(ranks, range) else ranks.shape[1]
    if value.to == "memory" and stage.when != "begin" and leaving > layout.recent:
        raise fail(f"lets {leaving} units wait for a decision, but there is room for {layout.recent}")
    standing = len(slots.regions.sink) + len(slots.regions.bank)
    # With the chunk, these newest units fill the recent region; those that leave beyond need free some.
    recent = min(max(0, layout.recent - slots.incoming), slots.held - standing - count)
    end = slots.held - max(0, recent - (leaving - count))
    allowed = f"ranks must lie from {standing}, past the sink{' and bank' * bool(layout.bank)}, below {end}"
    if isinstance(ranks, range):
        if ranks.start < standing or ranks.stop > end:
            raise fail(f"evicts {ranks}; {allowed}")
        return Eviction(ranks, value.to)
    ordered = ranks.sort(dim=1).values
    checks.between(ordered, standing - 1, end, lambda: fail(f"evicts a rank out of range; {allowed}"))
    checks.distinct(ordered, lambda: fail("evicts a unit twice"))
    return Eviction(ordered.clamp(standing, end - 1), value.to)


def score_of(value: object, like: Tensor, fail: Fail, checks: Checks) -> Tensor:
    """Check a scorer's score of candidates, of the shape of their origins `like` `[B, N]`."""
    if not isinstance(value, Tensor) or value.shape != like.shape or not value.is_floating_point():
        raise fail(f"returned {kind_of(value)}; expected floating point {list(like.shape)}")
    if value.device != like.device:
        raise fail(f"returned a score on {value.device}; expected {like.device}")
    checks.finite(value, lambda: fail("returned a score that is not finite"))
    return value


def selection_of(
    value: object, stage: Selector, candidates: Candidates, fail: Fail, checks: Checks
) -> Selection:
    """Check a selector's choice; it comes back with `keep` in ascending order, int64."""
    selection = value if isinstance(value, Selection) else Selection(value)  # type: ignore[arg-type]
    batch, count = candidates.origins.shape
    shape = (batch, candidates.capacity)
    keep = indices_of(selection.keep, shape, candidates.origins, fail)
    ordered, order, clamped = candidates.fuse(_sorted)(keep, count)
    checks.between(
        ordered,
        -1,
        count,
        lambda: fail(f"returned an index out of range; indices must lie from 0 below {count}"),
    )
    checks.distinct(ordered, lambda: fail("returned an index twice"))
    metadata = metadata_of(selection.metadata, candidates.metadata, shape, fail, checks)
    metadata = {name: noted.gather(1, order) for name, noted in metadata.items()}
    weights = selection.weights
    if weights is not None and not stage.blends:
        raise fail("returned weights, but does not declare blends = True")
    if weights is not None:
        like_weights(weights, (*shape, count), candidates.origins, fail)
        checks.between(
            weights.sum(dim=2) - 1,
            -ROUNDING,
            ROUNDING,
            lambda: fail("returned weights whose rows do not add up to 1"),
        )
        weights = weights.gather(1, order[..., None].expand(weights.shape))
    return Selection(clamped, weights, metadata)


def placement_of(value: object, slots: Slots, fail: Fail, checks: Checks) -> Placement:
    """Check where a policy places a layer's units."""
    shape = tuple(slots.origins.shape)
    if isinstance(value, Tensor):
        if value.shape != shape or value.is_complex() or value.dtype == torch.bool:
            raise fail(f"returned {kind_of(value)}; expected real positions {list(shape)}")
        if value.device != slots.origins.device:
            raise fail(f"returned positions on {value.device}; expected {slots.origins.device}")
        if value.is_floating_point():
            checks.finite(value, lambda: fail("returned positions that are not finite"))
        return value
    if not isinstance(value, Sequence) or not all(isinstance(position, int) for position in value):
        raise fail(f"returned {kind_of(value)}; expected whole numbers or a tensor, a position a unit")
    if len(value) != shape[1]:
        raise fail(f"returned {len(value)} positions for {shape[1]} units")
    return tuple(value)


def segments_of(value: object, slots: Slots, fail: Fail, checks: Checks) -> tuple[Segment, ...]:
    """Check what a policy lets each group of heads read."""
    heads = slots.like.shape[2]
    if not isinstance(value, Sequence) or not all(isinstance(segment, Segment) for segment in value):
        raise fail(f"returned {kind_of(value)}; expected Segments")
    shared_out = sorted(head for segment in value for head in segment.heads)
    if shared_out != list(range(heads)):
        raise fail(f"returned segments for heads {shared_out}; each of {heads} belongs in exactly one")
    history = range(slots.current.start)
    return tuple(
        Segment(segment.heads, ranks_of(segment.ranks, history, slots.origins, fail, checks))
        for segment in value
    )


def revision_of(value: object, slots: Slots, fail: Fail, checks: Checks) -> Revision:
    """Check how a policy changes units."""
    if not isinstance(value, Revision):
        raise fail(f"returned {kind_of(value)}; expected a Revision")
    rewrites = value.keys is not None or value.values is not None
    first = len(slots.regions.sink) if rewrites else 0
    ranks = ranks_of(value.ranks, range(first, slots.held), slots.origins, fail, checks)
    batch = slots.origins.shape[0]
    shape = (batch, ranks.shape[1] if isinstance(ranks, Tensor) else len(ranks))
    if rewrites:
        for name, tensor in (("keys", value.keys), ("values", value.values)):
            units_of(tensor, name, "the revised", (*shape, *slots.like.shape[1:]), slots.like, fail, checks)
    metadata = metadata_of(value.metadata, slots.metadata, shape, fail, checks)
    return Revision(ranks, value.keys, value.values, metadata)


def units_of(
    value: object,
    name: str,
    whose: str,
    shape: Sequence[int],
    like: Tensor,
    fail: Fail,
    checks: Checks,
    *,
    changes: bool = False,
) -> None:
    """Check keys or values of some shape, of the type and on the device of `like`; see `Checks.between`."""
    at_home = isinstance(value, Tensor) and value.device == like.device
    if (
        not isinstance(value, Tensor)
        or not at_home
        or value.shape != tuple(shape)
        or value.dtype != like.dtype
    ):
        expected = f"{like.dtype} {list(shape)} on {like.device}"
        raise fail(f"made {whose} {name} {kind_of(value)}; expected {expected}")
    checks.finite(value, lambda: fail(f"made {name} that are not finite"), changes=changes)


def metadata_of(
    value: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    shape: tuple[int, int],
    fail: Fail,
    checks: Checks,
) -> dict[str, Tensor]:
    """Check new metadata of units, `[B, n]` by name."""
    found = {}
    for name, noted in value.items():
        if name not in known:
            raise fail(f"notes '{name}', which no stage declares in its `metadata`")
        if not isinstance(noted, Tensor) or noted.shape != shape or noted.device != known[name].device:
            raise fail(f"notes '{name}' as {kind_of(noted)}; expected numbers {list(shape)}")
        found[name] = noted.to(torch.float32)
        checks.finite(found[name], _later(fail, f"notes a '{name}' that is not finite"))
    return found


def ranks_of(value: object, allowed: range, like: Tensor, fail: Fail, checks: Checks) -> Ranks:
    """Check ranks of units, all within `allowed` and none twice; `like` is a layer's origins."""
    within = f"ranks must lie from {allowed.start} below {allowed.stop}"
    if isinstance(value, Tensor):
        columns = value.shape[-1] if value.dim() else 0
        ranks = indices_of(value, (like.shape[0], columns), like, fail)
        checks.between(
            ranks, allowed.start - 1, allowed.stop, lambda: fail(f"names a rank out of range; {within}")
        )
        checks.distinct(ranks.sort(dim=1).values, lambda: fail("names a unit twice"))
        return ranks.clamp(allowed.start, max(allowed.start, allowed.stop - 1))
    if not isinstance(value, Sequence) or not all(isinstance(rank, int) for rank in value):
        raise fail(f"returned ranks {kind_of(value)}; expected whole numbers or a tensor")
    if any(rank not in allowed for rank in value):
        raise fail(f"names ranks {list(value)}; {within}")
    if len(set(value)) < len(value):
        raise fail("names a unit twice")
    return value


def like_weights(weights: object, shape: tuple[int, ...], like: Tensor, fail: Fail) -> None:
    """Check the form of blending weights."""
    right = isinstance(weights, Tensor) and weights.is_floating_point() and weights.device == like.device
    if not right or not isinstance(weights, Tensor) or weights.shape != shape:
        raise fail(f"returned weights {kind_of(weights)}; expected floating point {list(shape)}")


def indices_of(value: object, shape: tuple[int, int], like: Tensor, fail: Fail) -> Tensor:
    """Check integer indices of a shape, on the right device; they come back as int64."""
    if (
        not isinstance(value, Tensor)
        or value.shape != shape
        or value.is_floating_point()
        or value.is_complex()
    ):
        raise fail(f"returned {kind_of(value)}; expected integers {list(shape)}")
    if value.dtype == torch.bool or value.device != like.device:
        raise fail(f"returned {kind_of(value)}; expected integers {list(shape)} on {like.device}")
    return value.to(torch.int64)


def kind_of(value: object) -> str:
    """What a plugin returned, in words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _later(fail: Fail, message: str) -> Callable[[], StageError]:
    return lambda: fail(message)


def _sorted(indices: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices in ascending order, where each was, and those below `count` as they are, others clamped."""
    ordered, order = indices.sort(dim=1)
    return ordered, order, ordered.clamp(0, count - 1)
