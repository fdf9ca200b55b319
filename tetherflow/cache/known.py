"""What is known of units before memory is decided, of all layers in one step."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tetherflow.cache.book import Book
from tetherflow.cache.fusing import Fuse
from tetherflow.cache.statistics import Statistics, pooled


@attrs.frozen(eq=False)
class Known:
    """Of those that memory is decided among, and of those that stay before it; a row for each sample.

    Attributes:
        slots: of sink, bank, memory and newcomers, in this order, int64 `[R, n]`.
        origins: their serial numbers, likewise.
        statistics: of their keys and values, `[R, n, 2, H, D]`; None if the book keeps none.
        pool: those of all but the newcomers, pooled, `[R, 2, H, D]`; None unless they were asked for.
        mean_keys: of memory and newcomers, float32 `[R, N, H, D]`, a copy; None if the book keeps none.
    """

    slots: Tensor
    origins: Tensor
    statistics: Statistics | None
    pool: Statistics | None
    mean_keys: Tensor | None

    @classmethod
    def of(
        cls, book: Book, order: Tensor, newcomers: Tensor, standing: int, *, pools: bool, fuse: Fuse
    ) -> Known:
        """Look it up.

        Args:
            book: of R rows.
            order: slots of sink, bank and memory, in time order, `[R, t]`.
            newcomers: slots `[R, n - t]`.
            standing: how many units stand before memory.
            pools: whether to pool the statistics of those before the newcomers.
            fuse: makes one kernel of pooling.
        """
        slots = torch.cat([order, newcomers], dim=1)
        found, pool, mean_keys = book.statistics(slots), None, None
        if found is not None:
            mean_keys = found.mean[:, standing:, 0].clone()
            trusted = found[:, : order.shape[1]]
            pool = Statistics(*fuse(pooled)(trusted.mean, trusted.variance)) if pools else None
        return cls(slots, book.origins.gather(1, slots), found, pool, mean_keys)

    def rows(self, start: int, stop: int) -> Known:
        """A view of some rows."""
        own = slice(start, stop)
        found, pool = (None if of is None else of[own] for of in (self.statistics, self.pool))
        mean_keys = None if self.mean_keys is None else self.mean_keys[own]
        return Known(self.slots[own], self.origins[own], found, pool, mean_keys)
