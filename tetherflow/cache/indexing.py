"""Units are read and written by slot, and find free ones, in steps that never wait for the device."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor

from tetherflow.cache.answers import Ranks
from tetherflow.own_kernels import kernels, runs

KERNELS: Final = "tetherflow.cache.kernels"
WIDEST: Final = torch.complex128
"""The widest type that indexing moves in one piece; what the bits mean plays no part."""


def take(buffer: Tensor, row: Tensor, slots: Tensor, lead: int = 0) -> Tensor:
    """Copy what a buffer holds in some slots.

    Args:
        buffer: `[…, B, slots, …]`.
        row: the samples' numbers, int64 `[B, 1]`.
        slots: `[B, n]`.
        lead: dimensions before the samples', 0 or 1.

    Returns:
        `[…, B, n, …]`.
    """
    taken = _wide(buffer, lead)[_index(row, slots, lead)]
    return taken.view(buffer.dtype).view(*buffer.shape[:lead], *slots.shape, *buffer.shape[lead + 2 :])


def take_into(out: Tensor, buffer: Tensor, row: Tensor, slots: Tensor, lead: int = 0) -> None:
    """Copy the same to `out` `[…, B, n, …]`, which may lie in the buffer, but in none of these slots."""
    torch.ops.aten.index.Tensor_out(_wide(buffer, lead), [None] * lead + [row, slots], out=_wide(out, lead))


def put(buffer: Tensor, row: Tensor, slots: Tensor, units: Tensor, lead: int = 0) -> None:
    """Write `units`, of the shape that `take` returns, to a buffer's slots."""
    _wide(buffer, lead)[_index(row, slots, lead)] = _wide(units, lead)


def move(buffer: Tensor, row: Tensor, source: Tensor, target: Tensor, lead: int = 0) -> None:
    """Copy what a buffer holds in slots `source` to `target`, both `[B, n]`; reads all, then writes."""
    wide = _wide(buffer, lead)
    wide[_index(row, target, lead)] = wide[_index(row, source, lead)]


def relocate(
    buffer: Tensor, row: Tensor, source: Tensor, target: Tensor, lead: int = 0, aside: int | None = None
) -> None:
    """Copy units to slots that become free, each read and written once where a kernel of our own runs.

    Args:
        buffer: `[…, B, slots, …]`, a piece of memory for each unit.
        row: the samples' numbers, int64 `[B, 1]`.
        source: slots to read, `[B, n]`.
        target: slots to write, likewise: of each pair the same as its source, or one that is no source.
        lead: dimensions before the samples', 0 or 1.
        aside: slot to which what is in the first of `target` goes before, the others following: none of them
            is named otherwise. None if it is lost.
    """
    flat = buffer.flatten(lead + 2)
    if _relocates(buffer.device) and flat.shape[-1] * flat.itemsize % torch.int64.itemsize == 0:
        words = flat.view(torch.int64)
        kernels(KERNELS).relocate(words if lead else words[None], source, target, aside)
        return
    if aside is not None:
        kept = slice(aside, aside + target.shape[1])
        take_into(buffer[:, :, kept] if lead else buffer[:, kept], buffer, row, target, lead)
    move(buffer, row, source, target, lead)


@cache
def _relocates(device: torch.device) -> bool:
    """Whether our own kernel runs on a device."""
    if device.type != "cuda" or kernels(KERNELS) is None:
        return False
    words, slot = torch.zeros(1, 1, 2, 1, dtype=torch.int64, device=device), torch.zeros(1, 1, device=device)
    first = slot.to(torch.int64)
    return runs("units are moved", lambda: kernels(KERNELS).relocate(words, first + 1, first, None))


def pick(order: Tensor, ranks: Ranks) -> Tensor:
    """Columns of `order` `[B, held]` at some ranks, `[B, n]`."""
    if isinstance(ranks, Tensor):
        return order.gather(1, ranks)
    if isinstance(ranks, range) and ranks.step == 1:
        return order[:, ranks.start : max(ranks.start, ranks.stop)]
    return order[:, torch.tensor(ranks, dtype=torch.int64, device=order.device)]


def movers_first(slots: Tensor, moving: Tensor) -> Tensor:
    """Bring slots into the order in which holes are filled: those whose units move, then those that stay.

    A list of as many slots to be written, holes first and then these same ones that stay, pairs off with it:
    each mover gets a hole of its own, and each of the others itself. So shapes need not know how many move.

    Args:
        slots: `[B, n]`.
        moving: which of their units move, bool `[B, n]`.
    """
    return slots.gather(1, moving.view(torch.int8).argsort(dim=1, stable=True, descending=True))


def close_up(leaving: Tensor, held: int) -> Tensor:
    """Which units move so that those that stay fill the first slots.

    Args:
        leaving: slots that become free, `[B, n]`.
        held: how many of the first slots were in use.

    Returns:
        Slots to read, `[B, n]`, of which `leaving` are those to write: some units may stay where they are.
    """
    count = leaving.shape[1]
    staying = torch.ones(leaving.shape[0], held, dtype=torch.bool, device=leaving.device)
    staying.scatter_(1, leaving, False)
    tail = torch.arange(held - count, held, device=leaving.device).expand_as(leaving)
    # In ascending order: first the holes, then those of the tail that leave, which pair off with themselves.
    source = movers_first(tail, staying[:, held - count :])
    return torch.empty_like(source).scatter_(1, leaving.argsort(dim=1), source)


def _index(row: Tensor, slots: Tensor, lead: int) -> tuple[slice | Tensor, ...]:
    return (*(slice(None),) * lead, row, slots)


def _wide(buffer: Tensor, lead: int) -> Tensor:
    """The same memory with a unit in elements of 16 bytes, if it fits: indexing costs by the element."""
    flat = buffer.flatten(lead + 2)  # a view, but of units that are no piece of memory each
    return flat if flat.shape[-1] * flat.itemsize % WIDEST.itemsize else flat.view(WIDEST)
