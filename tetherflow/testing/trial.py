"""How a rule is tried: on rollouts that hypothesis draws, with few examples and one error at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from hypothesis import HealthCheck, Phase, given, settings

from tetherflow.testing.strategies import Rollout
from tetherflow.testing.subject import Subject

Rule = Callable[[Subject], None]


def trial_settings(subject: Subject) -> settings:
    """Settings of hypothesis for a rule; what they do not say is the profile's."""
    profile = settings()
    return settings(
        max_examples=subject.examples or max(1, profile.max_examples // 10),
        stateful_step_count=10,
        deadline=None,
        report_multiple_bugs=False,
        # Explaining a failure takes longer than finding it, and the error already names plugin and place.
        phases=[phase for phase in profile.phases if phase is not Phase.explain],
        suppress_health_check=list(HealthCheck),
    )


def over_rollouts(batch: tuple[int, int] = (1, 3)) -> Callable[[Callable[[Subject, Rollout], None]], Rule]:
    """Make a rule of what must hold in one rollout: it must in all that hypothesis finds.

    Args:
        batch: fewest and most samples.
    """

    def make(holds_in: Callable[[Subject, Rollout], None]) -> Rule:
        @functools.wraps(holds_in)
        def rule(subject: Subject) -> None:
            @trial_settings(subject)
            @given(rollout=subject.rollouts(batch=batch))
            def holds(rollout: Rollout) -> None:
                with torch.inference_mode(), torch.random.fork_rng(devices=[]):
                    holds_in(subject, rollout)

            with one_thread():
                holds()

        return rule

    return make


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: for tensors as small as these, more threads take several times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
