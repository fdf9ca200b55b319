"""What is known of units beside their keys and values: origins, statistics, notes."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from tetherflow.cache.indexing import move, put, take
from tetherflow.cache.statistics import Statistics

EMPTY = -1
"""Origin of a slot that holds nothing."""


@attrs.frozen(eq=False)
class Book:
    """Origins, statistics and notes of units by slot, a row for each sample of each layer.

    All layers' rows are in one tensor, so that what every layer does alike, as a chunk begins, takes one
    step; a layer's own book is a view of its rows.

    Attributes:
        row: the rows' numbers, int64 `[R, 1]`.
        origins: int64 `[R, slots]`, or EMPTY.
        moments: of keys and values, mean and variance, float32 `[R, slots, 2, 2, H, D]`, if they are kept;
            one buffer, so that a unit's statistics move in one copy.
        norms: mean norm of each unit's keys, float32 `[R, slots, H]`, if they are kept.
        notes: float32 `[R, slots, names]`, if anything is noted.
        initial: what is noted of each unit: name, and the value of a new one.
    """

    row: Tensor
    origins: Tensor
    moments: Tensor | None
    norms: Tensor | None
    notes: Tensor | None
    initial: Mapping[str, float]

    @classmethod
    def empty(
        cls,
        rows: int,
        slots: int,
        heads: tuple[int, int],
        *,
        device: torch.device,
        pooled: bool,
        normed: bool,
        metadata: Mapping[str, float],
    ) -> Book:
        """A book of slots that hold nothing.

        Args:
            rows: samples of all layers, R.
            slots: of a layer.
            heads: how many there are, and their width.
            device: where the cache lives.
            pooled: whether to keep each unit's key and value statistics (recall).
            normed: whether to keep the mean norm of each unit's keys.
            metadata: what is noted of each unit: name, and the value of a new one.
        """
        moments, notes = (rows, slots, 2, 2, *heads), (rows, slots, len(metadata))
        return cls(
            torch.arange(rows, device=device)[:, None],
            torch.full((rows, slots), EMPTY, dtype=torch.int64, device=device),
            torch.zeros(moments, dtype=torch.float32, device=device) if pooled else None,
            torch.zeros((rows, slots, heads[0]), dtype=torch.float32, device=device) if normed else None,
            torch.zeros(notes, dtype=torch.float32, device=device) if metadata else None,
            dict(metadata),
        )

    def rows(self, start: int, stop: int) -> Book:
        """A view of some rows."""
        kept = (None if x is None else x[start:stop] for x in (self.moments, self.norms, self.notes))
        moments, norms, notes = kept
        return Book(self.row[: stop - start], self.origins[start:stop], moments, norms, notes, self.initial)

    def move(self, source: Tensor, target: Tensor, *, statistics: bool = True) -> None:
        """Copy what is known of units from slots `source` to `target`, `[R, n]`; reads all, then writes.

        Args:
            source: slots to read.
            target: slots to write.
            statistics: whether those of keys and values go along.
        """
        self.origins.scatter_(1, target, self.origins.gather(1, source))
        for buffer in (self.moments, self.norms, self.notes) if statistics else (self.notes,):
            if buffer is not None:
                move(buffer, self.row, source, target)

    def admit(self, slots: slice, origins: Tensor) -> None:
        """Let new units of some origins `[n]` have slots."""
        self.origins[:, slots] = origins
        if self.notes is not None:
            for index, value in enumerate(self.initial.values()):
                self.notes[:, slots, index] = value

    def statistics(self, slots: Tensor) -> Statistics | None:
        """Key and value statistics of the units in `slots` `[R, n]`, `[R, n, 2, H, D]`, if they are kept."""
        if self.moments is None:
            return None
        return Statistics(*take(self.moments, self.row, slots).unbind(dim=3))

    def keep(self, slots: Tensor | slice, found: Statistics) -> None:
        """Write statistics `[R, n, 2, H, D]` of the units in `slots`, `[R, n]` or the same in all rows."""
        if self.moments is None:
            return
        if isinstance(slots, slice):
            self.moments[:, slots, :, 0], self.moments[:, slots, :, 1] = found.mean, found.variance
        else:
            put(self.moments, self.row, slots, torch.stack([found.mean, found.variance], dim=3))

    def metadata(self, slots: Tensor) -> dict[str, Tensor]:
        """Copies of what is noted of the units in `slots` `[R, n]`, float32 `[R, n]` by name."""
        if self.notes is None:
            return {}
        return dict(zip(self.initial, take(self.notes, self.row, slots).unbind(dim=-1), strict=True))

    def note(self, slots: Tensor, metadata: Mapping[str, Tensor]) -> None:
        """Change what is noted of the units in `slots` `[R, n]`."""
        names = list(self.initial)
        for name, noted in metadata.items():
            if self.notes is not None:
                self.notes[..., names.index(name)].scatter_(1, slots, noted.to(torch.float32))
