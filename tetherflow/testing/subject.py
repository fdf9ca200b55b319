"""What the conformance suite holds to its rules: a policy, and what it may be given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import attrs
import hypothesis.strategies as st
from hypothesis.strategies import SearchStrategy

from tetherflow.cache import Layout, Positions
from tetherflow.errors import LayoutError, PipelineError
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import load_recipe, pipeline_of
from tetherflow.stages import Stage
from tetherflow.testing.companions import complete
from tetherflow.testing.script import Model
from tetherflow.testing.strategies import SMALL_MODELS, SMALL_REGIONS, Rollout, rollouts

Policy = type[Stage] | Callable[[], Pipeline] | str | Path
"""A stage, which the kit completes; a function that makes a whole policy; or a recipe, by name or path."""


@attrs.frozen
class Subject:
    """A policy under test.

    Attributes:
        make: makes the policy, anew at every call.
        setups: regions and key positions that it may be given.
        models: sizes of the model's tensors.
        chunk: latent frames of every chunk; any that fit if None.
        examples: how many rollouts each rule is tried on.
    """

    make: Callable[[], Pipeline]
    setups: tuple[tuple[Layout, Positions], ...]
    models: tuple[Model, ...]
    chunk: int | None
    examples: int | None

    @classmethod
    def of(
        cls,
        policy: Policy,
        *,
        regions: Sequence[Layout] = SMALL_REGIONS,
        positions: Sequence[Positions] = get_args(Positions),
        models: Sequence[Model] = SMALL_MODELS,
        chunk: int | None = None,
        examples: int | None = None,
    ) -> Subject:
        """A policy with all the regions and positions, of those given, in which an engine takes it.

        Args:
            policy: the policy.
            regions: regions to choose from.
            positions: key positions to choose from.
            models: sizes to choose from.
            chunk: latent frames of every chunk; any that fit if omitted.
            examples: how many rollouts each rule is tried on; a tenth of hypothesis's setting if omitted.

        Raises:
            LayoutError: An engine takes it in none of them.
        """
        make = _maker(policy)
        tried = make()
        setups = []
        refusals: dict[str, None] = {}
        for layout in regions:
            for place in positions:
                try:
                    if chunk is not None:
                        layout.check_chunk(chunk)
                    models[0].engine(layout, tried, positions=place)
                except LayoutError as error:
                    refusals[str(error)] = None
                else:
                    setups.append((layout, place))
        if not setups:
            raise LayoutError(
                f"no engine takes this policy in any of {len(regions)} regions; hand in `regions=` that suit "
                f"it. It was refused because: {'; '.join(list(refusals)[:3])}"
            )
        return cls(make, tuple(setups), tuple(models), chunk, examples)

    def rollouts(self, *, batch: tuple[int, int] = (1, 3)) -> SearchStrategy[Rollout]:
        """Rollouts that this policy may be given, of so few to so many samples."""
        setups = st.sampled_from(self.setups)
        return rollouts(setups, batch=batch, models=self.models, chunk=self.chunk)


def _maker(policy: Policy) -> Callable[[], Pipeline]:
    if isinstance(policy, str | Path):
        # Plugins are looked up once: that takes longer than a whole small rollout.
        fresh = pipeline_of(load_recipe(policy))
        return lambda: _again(fresh)
    if isinstance(policy, type):
        return lambda: complete(policy())
    return policy


def _again(policy: Pipeline) -> Pipeline:
    """The same policy of stages of its own."""
    again = Pipeline(
        evict=copy.deepcopy(policy.evictor),
        score=copy.deepcopy(policy.scorers),
        select=copy.deepcopy(policy.selector),
        edit=copy.deepcopy(policy.editors),
        merge=copy.deepcopy(policy.merger),
        schedules=copy.deepcopy(policy.schedules),
        frame_seconds=policy.frame_seconds,
    )
    if [stage.name for stage in again.stages] != [stage.name for stage in policy.stages]:
        raise PipelineError("this policy has stages of a kind that the conformance suite does not know")
    return again
