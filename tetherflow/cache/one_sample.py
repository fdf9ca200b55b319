"""One sample of what a stage is shown, as if it were alone in its batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from tetherflow.cache.answers import Ranks
from tetherflow.cache.newcomers import Newcomers
from tetherflow.cache.slots import Lazy, Reader, Slots
from tetherflow.cache.stage_data import Candidates, Draft
from tetherflow.cache.statistics import Statistics


def one_sample(given: Any, index: int) -> Any:
    """One sample of what a hook is given: views, but of what is read from the cache when it is asked for.

    Args:
        given: candidates, a draft, a tensor `[B, …]` or a mapping of such; anything else comes back as it is.
        index: the sample's place in the batch.
    """
    if isinstance(given, Candidates):
        return _candidates(given, index)
    if isinstance(given, Draft):
        return _draft(given, index)
    return _rows(given, index)


def _candidates(whole: Candidates, index: int) -> Candidates:
    row, known = slice(index, index + 1), whole._mean_keys
    mean_query = whole._mean_query
    return attrs.evolve(
        whole,
        sample=index,
        origins=whole.origins[row],
        metadata=_rows(whole.metadata, index),
        sides=_rows(whole._sides, index),
        mean_keys=known[row] if isinstance(known, Tensor) else lambda: whole.mean_keys[row],
        mean_query=(lambda: whole.mean_query[row]) if callable(mean_query) else _rows(mean_query, index),
        query=_query(whole, index),
        read_keys=lambda: whole.read_keys()[row],
        read_values=lambda: whole.read_values()[row],
        read_slots=lambda: _slots(whole.read_slots(), index),
        newcomers=lambda: _newcomers(whole.newcomers, row),
        key_norms=lambda: whole.key_norms[row],
    )


def _draft(whole: Draft, index: int) -> Draft:
    row = slice(index, index + 1)
    return attrs.evolve(
        whole,
        sample=index,
        origins=whole.origins[row],
        admitted=whole.admitted[row],
        keys=whole.keys[row],
        values=whole.values[row],
        key_statistics=whole.key_statistics[row],
        value_statistics=whole.value_statistics[row],
        trusted_keys=whole.trusted_keys[row],
        trusted_values=whole.trusted_values[row],
        sides=_rows(whole._sides, index),
    )


def _slots(whole: Slots, index: int) -> Slots:
    reader = None if whole._reader is None else SampleReader(whole._reader, index, whole.origins.shape[0])
    return attrs.evolve(
        whole,
        origins=_rows(whole.origins, index),
        metadata=_rows(whole.metadata, index),
        sides=_rows(whole._sides, index),
        reader=reader,
        query=_query(whole, index),
    )


def _query(whole: Candidates | Slots, index: int) -> Lazy | None:
    """A sample's queries, made when they are asked for if all samples' are."""
    if whole._query is None or isinstance(whole._query, Tensor):
        return None if whole._query is None else whole._query[index : index + 1]
    return lambda: whole.query[index : index + 1]


def _newcomers(whole: Newcomers, row: slice) -> Newcomers:
    trusted = whole.trusted_keys[row], whole.trusted_values[row]
    return Newcomers(whole.keys[row], whole.values[row], *trusted, whole.trusted_units)


def _rows(whole: Any, index: int) -> Any:
    """A sample's row of a tensor, or of every tensor in mappings."""
    if isinstance(whole, Tensor):
        return whole[index : index + 1]
    if isinstance(whole, Mapping):
        return {name: _rows(one, index) for name, one in whole.items()}
    return whole


@attrs.frozen(eq=False)
class SampleReader:
    """Reads the units of one sample; all samples are copied, and the others let go.

    Attributes:
        whole: reads those of all.
        index: the sample's place in the batch.
        batch: samples, B.
    """

    whole: Reader
    index: int
    batch: int

    def like(self) -> Tensor:
        """A tensor without elements, of units' shape, type and device."""
        return self.whole.like()

    def keys(self, ranks: Ranks) -> Tensor:
        """Unrotated keys `[1, n, T, heads, head_dim]`."""
        return self.whole.keys(self._for_all(ranks))[self._row]

    def stored_keys(self) -> tuple[Tensor, Tensor]:
        """Unrotated keys where they are stored, and each unit's place; not copies."""
        keys, places = self.whole.stored_keys()
        return keys[self._row], places[self._row]

    def values(self, ranks: Ranks) -> Tensor:
        """Values, likewise."""
        return self.whole.values(self._for_all(ranks))[self._row]

    def statistics(self, ranks: Ranks) -> tuple[Statistics, Statistics]:
        """Key and value statistics of each unit, `[1, n, heads, head_dim]`."""
        keys, values = self.whole.statistics(self._for_all(ranks))
        return keys[self._row], values[self._row]

    def rotate(self, x: Tensor, positions: Tensor, parts: Tensor) -> Tensor:
        """Rotate units `[1, n, T, heads, head_dim]`."""
        return self.whole.rotate(x, positions, parts)

    @property
    def _row(self) -> slice:
        return slice(self.index, self.index + 1)

    def _for_all(self, ranks: Ranks) -> Ranks:
        return ranks.expand(self.batch, -1) if isinstance(ranks, Tensor) else ranks
