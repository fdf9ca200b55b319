"""Fixtures for who tests a policy; pytest finds them wherever Tetherflow is installed.

Nothing else of Tetherflow is imported until a test asks for a fixture: every run of pytest loads this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tetherflow.cache import CacheEngine, Candidates, Draft, Slots

Drive = Callable[..., "CacheEngine"]


@pytest.fixture
def tetherflow_slots() -> Slots:
    """A full layer as a chunk begins, as `evict` is given it: two samples whose memories differ."""
    shown: Slots = _shown("evict", "slots")
    return shown


@pytest.fixture
def tetherflow_candidates() -> Candidates:
    """Candidates for memory, as `score` and `select` get them: 3 residents, 2 newcomers, two samples."""
    shown: Candidates = _shown("score", "candidates")
    return shown


@pytest.fixture
def tetherflow_draft() -> Draft:
    """Newcomers, as `edit` is given them: 2 in each of two samples."""
    shown: Draft = _shown("edit", "draft")
    return shown


@pytest.fixture
def tetherflow_drive() -> Drive:
    """A function that drives a policy for some chunks of random numbers, and returns its engine.

    `drive(policy, layout, chunks=8, batch=1)`; the policy is a stage, its class, or a whole `Pipeline`.
    """
    from tetherflow.cache import Layout
    from tetherflow.pipeline import Pipeline
    from tetherflow.stages import Stage
    from tetherflow.testing.companions import complete
    from tetherflow.testing.script import run
    from tetherflow.testing.strategies import Rollout

    def drive(
        policy: type[Stage] | Stage | Pipeline,
        layout: Layout = Layout(1, 3, 2),  # noqa: B008  # it is frozen
        *,
        chunks: int = 8,
        batch: int = 1,
    ) -> CacheEngine:
        stage = policy() if isinstance(policy, type) else policy
        pipeline = stage if isinstance(stage, Pipeline) else complete(stage)
        rollout = Rollout(layout, (layout.recent,) * chunks, seeds=tuple(range(batch)))
        engine = rollout.engine(pipeline)
        run(engine, rollout.script())
        return engine

    return drive


def _shown(hook: str, argument: str) -> Any:
    from tetherflow.cache import Layout
    from tetherflow.testing.strategies import Rollout, last_shown

    return last_shown(Rollout(Layout(1, 3, 2), (2,) * 6, seeds=(0, 1)), hook, argument)
