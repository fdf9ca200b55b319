"""Attention cut so that a GPU's last wave of blocks keeps all of it busy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, Protocol

import attrs
import torch
from torch import Tensor

from tetherflow.cache.fusing import Fuse, step_by_step

TILE: Final = 128
"""Queries of one head that a block computes, in the kernels that are cut."""
WIDE_TILE: Final = 192
"""Queries of one head that a block of a kernel may compute instead."""
_MOST_PIECES: Final = 16
_OVERHEAD: Final = 4096
"""What a second kernel and joining the results cost, as keys that a wave would visit meanwhile."""


class WithLogSums(Protocol):
    """Attention that tells the logarithms of its softmaxes' denominators."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Attend from `[B, Lq, H, D]` to `[B, Lk, H, D]`.

        Returns:
            What was attended to `[B, Lq, H, D]`, in `out` if that is given, and the logarithms, float32
            `[B, H, Lq]`.
        """
        ...


@attrs.frozen
class Cut:
    """How a call is cut.

    Attributes:
        whole: queries that see all keys at once, the first ones.
        pieces: into how many equal pieces the keys are cut for the other queries.
    """

    whole: int
    pieces: int


@functools.cache
def cut_of(queries: int, keys: int, heads: int, at_once: int) -> Cut | None:
    """Where to cut a call whose blocks, of TILE queries of a head each, run so many at once.

    All blocks take equally long, so 3.4 waves of them take as long as 4. Instead, as many queries as fill 3
    waves see all keys, and the keys of the others are shared out among more blocks, which takes 0.4.

    Returns:
        None if that gains nothing.
    """
    tiles = -(-queries // TILE)
    waves, first = -(-tiles * heads // at_once), tiles * heads // at_once * at_once // heads
    blocks = (tiles - first) * heads

    def visited(pieces: int) -> int:
        """Keys that a block visits, times waves, for the queries after the first."""
        return -(-blocks * pieces // at_once) * -(-keys // pieces // TILE) * TILE

    pieces = min((n for n in range(1, _MOST_PIECES + 1) if keys % n == 0), key=visited)
    cost = -(-first * heads // at_once) * keys + visited(pieces) + _OVERHEAD
    return Cut(first * TILE, pieces) if blocks and cost < waves * keys else None


def in_wide_waves(queries: torch.Size, at_once: int) -> bool:
    """Whether queries `[B, L, H, D]` make whole waves of blocks of WIDE_TILE, so many at once, too."""
    batch, length, heads, _ = queries
    return length % WIDE_TILE == 0 and batch * length // WIDE_TILE * heads % at_once == 0


def in_whole_waves(
    kernel: WithLogSums, at_once: int, fuse: Fuse = step_by_step
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention by a kernel whose calls are cut where that makes them faster; the same but for rounding.

    Args:
        kernel: computes attention, in blocks of TILE queries of a head.
        at_once: how many blocks the device computes at once.
        fuse: makes one kernel of joining the results.
    """
    join = fuse(_join)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from `[B, Lq, H, D]` to `[B, Lk, H, D]`."""
        batch, queries, heads, _ = query.shape
        # A batch has waves enough, and its slots cannot be cut without a copy.
        cut = cut_of(queries, key.shape[1], heads, at_once) if batch == 1 else None
        if cut is None:
            return kernel(query, key, value)[0]
        out = query.new_empty(query.shape)
        parts, log_sums = kernel(
            query[:, cut.whole :].expand(cut.pieces, -1, -1, -1),
            *(x[0].unflatten(0, (cut.pieces, -1)) for x in (key, value)),
        )
        if cut.whole:
            kernel(query[:, : cut.whole], key, value, out[:, : cut.whole])
        join(parts, log_sums, out[0, cut.whole :])
        return out

    return attend


def _join(parts: Tensor, log_sums: Tensor, out: Tensor) -> None:
    """Put together what queries attended to in parts of the keys.

    Args:
        parts: attention to each part, `[P, r, H, D]`.
        log_sums: logarithms of the softmaxes' denominators, `[P, H, r]`.
        out: where to, `[r, H, D]`.
    """
    # Expanded, so that a compiler makes one kernel of it all: exponentials are cheaper than a second one.
    logs = log_sums.transpose(1, 2)[..., None].expand(parts.shape).unbind()
    largest = functools.reduce(torch.maximum, logs)
    shares = [torch.exp(log - largest) for log in logs]
    # Added up one by one, which a compiler makes one kernel of, with the rest.
    weighted = (part * share for part, share in zip(parts.unbind(), shares, strict=True))
    out.copy_(functools.reduce(torch.add, weighted) / functools.reduce(torch.add, shares))
