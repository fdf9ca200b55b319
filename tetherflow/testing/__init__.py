"""Tools to test backbones, policies and the engine with: a conformance suite, strategies, recorded rollouts.

What draws examples needs hypothesis and pytest, the `test` extra; `tetherflow.testing.replay` needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tetherflow.errors import TetherflowError

if TYPE_CHECKING:
    from tetherflow.testing.companions import complete
    from tetherflow.testing.rules import RULES
    from tetherflow.testing.script import Model, Record, run, write_script
    from tetherflow.testing.strategies import Rollout, candidates, drafts, regions, rollouts, slots
    from tetherflow.testing.subject import Subject
    from tetherflow.testing.suite import conformance

_HOMES = {
    "RULES": "rules",
    "Model": "script",
    "Record": "script",
    "Rollout": "strategies",
    "Subject": "subject",
    "candidates": "strategies",
    "complete": "companions",
    "conformance": "suite",
    "drafts": "strategies",
    "regions": "strategies",
    "rollouts": "strategies",
    "run": "script",
    "slots": "strategies",
    "write_script": "script",
}

__all__ = [
    "RULES",
    "Model",
    "Record",
    "Rollout",
    "Subject",
    "candidates",
    "complete",
    "conformance",
    "drafts",
    "regions",
    "rollouts",
    "run",
    "slots",
    "write_script",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and say what is missing where it cannot be."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tetherflow.testing' has no attribute '{name}'")
    try:
        found = getattr(import_module(f"tetherflow.testing.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("hypothesis", "pytest"):
            raise
        raise TetherflowError(
            f"tetherflow.testing.{name} needs {package}, which is not installed; "
            "`pip install 'tetherflow[test]'` brings it"
        ) from error
    globals()[name] = found
    return found
