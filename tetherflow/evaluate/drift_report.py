"""What a measurement of drift gives, as data."""

from __future__ import annotations

from typing import Any

import attrs

from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.cost import PolicyCost
from tetherflow.evaluate.figures import HorizonFigures


@attrs.frozen
class PolicyDrift:
    """One recipe's figures.

    Attributes:
        name: the recipe's name.
        figures: at every horizon, ascending.
        share: its drift as a share of the first recipe's, at every horizon; None for the first recipe. A
            horizon has None where the interval of the first recipe's drift begins below 0: a share of
            nothing means nothing.
        cost: time and memory; None if they were not measured.
        dtype: type of the transformer and the cache.
        recipe: what was run, without its prompts and its output folder.
    """

    name: str
    figures: list[HorizonFigures]
    share: list[Estimate | None] | None
    cost: PolicyCost | None
    dtype: str
    recipe: dict[str, Any]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PolicyDrift:
        """Read what `attrs.asdict` gave."""
        share, cost = data["share"], data["cost"]
        if share is not None:
            share = [None if estimate is None else Estimate.from_dict(estimate) for estimate in share]
        figures = [HorizonFigures.from_dict(figures) for figures in data["figures"]]
        cost = None if cost is None else PolicyCost.from_dict(cost)
        return cls(**data | {"figures": figures, "share": share, "cost": cost})


@attrs.frozen
class DriftReport:
    """Figures of several recipes over the same prompts and seeds.

    Attributes:
        policies: in the order given; the first is what the others are compared with.
        real: what real clips score, one of each prompt held against the others.
        prompts: what the videos show, one video a prompt.
        seeds: seed of each video's noise; made of `seed` and the prompt.
        seed: the seed given.
        window_frames: video frames of a window.
        reference_clips: real clips of each prompt that quality was judged against.
        backbone: name of the model.
        weights_sha256: of its weights.
        device: where the videos were generated, in words.
    """

    policies: list[PolicyDrift]
    real: Estimate
    prompts: list[str]
    seeds: list[int]
    seed: int
    window_frames: int
    reference_clips: int
    backbone: str
    weights_sha256: str
    device: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DriftReport:
        """Read what `to_dict` gave."""
        policies = [PolicyDrift.from_dict(policy) for policy in data["policies"]]
        return cls(**data | {"policies": policies, "real": Estimate.from_dict(data["real"])})
