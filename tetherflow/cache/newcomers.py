"""The statistics of what comes to memory, beside those of what is trusted."""

from __future__ import annotations

import attrs

from tetherflow.cache.statistics import Statistics


@attrs.frozen(eq=False)
class Newcomers:
    """Statistics of one layer's newcomers, the units just evicted, and of the trusted pool.

    The trusted pool is sink, bank and memory as they were before the decision. All of it stays on the device.

    Attributes:
        keys: each newcomer's own key statistics, float32 `[B, n, heads, head_dim]`.
        values: each newcomer's own value statistics.
        trusted_keys: key statistics of the trusted pool, float32 `[B, heads, head_dim]`.
        trusted_values: value statistics of the trusted pool.
        trusted_units: how many units the trusted pool holds.
    """

    keys: Statistics
    values: Statistics
    trusted_keys: Statistics
    trusted_values: Statistics
    trusted_units: int
