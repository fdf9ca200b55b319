"""EMA-sink against its formula, written out over a list of entries."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.cache.drive import Sizes
from tests.policies.slow import Entry, Slow, hold_to
from tetherflow import Layout
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import layout_of, load_recipe, pipeline_of
from tetherflow_policies.ema_sink import EmaSink
from tetherflow_policies.sink_window import SinkWindow

SIZES = Sizes(layers=2, heads=1, head_dim=6, grid=(2, 2))


class SlowEmaSink(Slow):
    """A bank after a sink, and a window."""

    decay, sink, bank, window = 0.999, 0, 3, 6

    def begin(self, frames: int) -> None:
        standing = self.sink + self.bank
        count = len(self.entries) + frames - standing - self.window
        if count <= 0:
            return
        bank, leaving = self.entries[self.sink : standing], self.entries[standing : standing + count]
        for i, entry in enumerate(bank):
            for part in ("key", "value"):
                gone = [getattr(one, part) for one in leaving]
                e = gone[i] if count == self.bank else torch.stack(gone).mean(dim=0)
                setattr(entry, part, self.decay * getattr(entry, part) + (1 - self.decay) * e)
        del self.entries[standing : standing + count]

    def commit(self, chunk: Sequence[Entry]) -> None:
        self.entries += chunk


@pytest.mark.parametrize("unit", ["frame", 2, 1, "token"])
def test_rollout_is_the_specified_one(unit: str | int) -> None:
    recipe = load_recipe("ema-sink")
    hold_to(SlowEmaSink, pipeline_of(recipe), layout_of(recipe), [3] * 8, unit=unit, sizes=SIZES)  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["frame", "token"])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_units_that_cannot_be_aligned_are_averaged(decay: float, unit: str) -> None:
    class Sized(SlowEmaSink):
        sink, bank, window = 1, 2, 4

    Sized.decay = decay
    policy = Pipeline(SinkWindow(), merge=EmaSink(EmaSink.Options(decay=decay)))
    hold_to(Sized, policy, Layout(1, 0, 4, bank=2), [3, 4, 1, 2, 3, 1, 4, 2], unit=unit, sizes=SIZES)  # type: ignore[arg-type]
