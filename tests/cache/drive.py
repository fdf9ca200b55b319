"""Engines with the real rotary embedding, and comparisons of what two of them made of a script."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from tetherflow.cache import CacheEngine
from tetherflow.testing import Model, Record
from tetherflow_backbones.causal_wan import WanRotary


@attrs.frozen
class Sizes(Model):
    """Sizes of a random model with the transformer's own rotary embedding, computed in `precision`."""

    precision: torch.dtype = torch.float32

    @property
    def rotary(self) -> WanRotary:
        return WanRotary(self.head_dim, self.grid, self.precision)


def contents(engine: CacheEngine) -> list[Tensor]:
    """Every layer's keys, values and the keys that attention reads, in time order."""
    result = []
    for index, store in enumerate(engine.layers):
        result += [*engine.contents(index), store.take(store.read_keys, store.order)]
    return result


def assert_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """Two lists of tensors are equal bit for bit."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert torch.equal(x, y), f"differ by {(x - y).abs().max()}"


def assert_close(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float) -> None:
    """Two lists of tensors are equal within a tolerance."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def assert_same_record(a: Record, b: Record) -> None:
    """Two runs are equal bit for bit, decisions and attention alike."""
    assert_same(a.attended, b.attended)
    assert_same(a.origins, b.origins)
    for x, y in zip(a.dropped, b.dropped, strict=True):
        assert_same(x, y)
