"""Random engines of the policies that the machine drives."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import torch

from tests.cache.drive import Sizes
from tests.cache.plugins import DrawSelector, ScatterEvictor, WanderEvictor, tethercache
from tetherflow import Layout
from tetherflow.cache import CacheEngine, Positions
from tetherflow.pipeline import Pipeline
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow
from tetherflow_policies.sliding_window import SlidingWindow
from tetherflow_policies.tame import Tame


@attrs.frozen
class Case:
    """One random engine.

    Attributes:
        policy: which of `pipeline`'s.
        sizes: of the model.
        layout: the regions.
        positions: of keys.
        batch: samples.
        strict: whether checks are strict.
        temperature, alpha, tau: options of GRAB and TAME.
        seed: of the tensors.
    """

    policy: str
    sizes: Sizes
    layout: Layout
    positions: Positions
    batch: int
    strict: bool
    temperature: float
    alpha: float
    tau: float
    seed: int

    @property
    def recalls(self) -> bool:
        return self.policy in RECALLING

    def engine(self) -> CacheEngine:
        """The engine."""
        return self.sizes.engine(
            self.layout, self.pipeline(), batch=self.batch, positions=self.positions, strict=self.strict
        )

    def pipeline(self) -> Pipeline:
        """The policy, made of plugins."""
        tame = Tame(Tame.Options(tau=self.tau))
        match self.policy:
            case "sliding-window":
                return Pipeline(SlidingWindow())
            case "sink-window":
                return Pipeline(SinkWindow())
            case "scatter":
                return Pipeline(ScatterEvictor())
            case "wander":
                return Pipeline(WanderEvictor())
            case "tethercache":
                return tethercache(temperature=self.temperature, alpha=self.alpha, tau=self.tau)
            case "grab":
                return tethercache(temperature=self.temperature, alpha=self.alpha, tau=None)
            case "draw":
                return Pipeline(RecallWindow(), select=DrawSelector(), edit=[tame])
            case _:
                return Pipeline(ScatterEvictor(destination="memory"), select=DrawSelector(), edit=[tame])


DROPPING = ["sliding-window", "sink-window", "scatter", "wander"]
RECALLING = ["tethercache", "grab", "draw", "scatter-draw"]


@st.composite
def cases(draw: st.DrawFn, policy: str) -> Case:
    """Random engines of a policy, with regions that suit it."""
    recalls = policy in RECALLING
    sink = 0 if policy == "sliding-window" else draw(st.integers(0, 3))
    no_memory = policy in ("sliding-window", "sink-window")
    memory = 0 if no_memory else draw(st.integers(1 if recalls else 0, 4))
    sizes = Sizes(
        layers=draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 2)),
        head_dim=draw(st.sampled_from([2, 6, 12])),
        grid=draw(st.sampled_from([(1, 2), (2, 1), (2, 3)])),
        precision=draw(st.sampled_from([torch.float32, torch.float64])),
    )
    return Case(
        policy=policy,
        sizes=sizes,
        layout=Layout(sink, memory, draw(st.integers(1, 4))),
        positions="block-relative" if recalls else draw(st.sampled_from(["absolute", "block-relative"])),
        batch=draw(st.integers(1, 3)),
        strict=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.1, 0.5, 1.0])),
        alpha=draw(st.sampled_from([0.0, 0.35, 2.0])),
        tau=draw(st.sampled_from([0.0, 0.3, 0.6, 1.0])),
        seed=draw(st.integers(0, 10_000)),
    )
