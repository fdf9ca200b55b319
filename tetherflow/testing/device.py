"""A rule of the conformance suite: whether a stage stays on the device where the cache lives."""

from __future__ import annotations

import warnings

import attrs

from tetherflow.cache.checks import Checks
from tetherflow.pipeline import Pipeline
from tetherflow.testing.companions import KIT
from tetherflow.testing.script import run
from tetherflow.testing.strategies import Rollout, converted, detached
from tetherflow.testing.subject import Subject
from tetherflow.testing.trial import over_rollouts
from tetherflow.testing.watch import Call, Watch


class HostReadWarning(UserWarning):
    """A stage reads a tensor's values on the host: allowed, but on a GPU every chunk then waits for it."""


@over_rollouts(batch=(1, 2))
def stays_on_the_device(subject: Subject, rollout: Rollout) -> None:
    """A stage makes its tensors where the cache lives.

    It is called on PyTorch's `meta` device, so that no GPU is needed.
    """
    shown: dict[tuple[str, str], Call] = {}

    def keep(call: Call) -> None:
        shown[call.plugin, call.stage] = attrs.evolve(call, given=detached(dict(call.given)))

    policy = subject.make()
    Watch(policy, before=keep)
    run(rollout.engine(policy), rollout.script())
    for call in shown.values():
        ours = call.plugin.startswith(KIT)  # which may read what it likes, to draw at random
        if call.layer is not None and not ours:  # else it was given no tensors
            _call_elsewhere(subject.make(), call)


def _call_elsewhere(policy: Pipeline, call: Call) -> None:
    """Repeat a call on the meta device, where tensors have no values but must not meet those of a CPU."""
    (stage,) = (stage for stage in policy.stages if stage.name == call.plugin)
    given = converted(dict(call.given), lambda x: x.to("meta"))
    watch = Watch(policy)
    try:
        policy.call(stage, call.stage, given, Checks(strict=False))  # there is nothing to check
    except Exception as error:  # whatever PyTorch raises: it has no type of its own for this
        if "expected device" in str(error):
            raise call.failure(
                f"mixes tensors of two devices ({error}); make new tensors with device=, where the given are"
            ) from error
        warnings.warn(
            f"plugin '{call.plugin}' may read values of a tensor on the host, which stalls a GPU ({error})",
            HostReadWarning,
            stacklevel=2,
        )
        return
    for name, x in watch.calls[0].out.items():
        if not x.is_meta:
            raise call.failure(f"made {name} on {x.device}, when everything it was given was elsewhere")
