"""What every test shares: one thread for tensors as small as these, no weights, and hypothesis profiles.

`HYPOTHESIS_PROFILE=thorough pytest tests/cache` searches for longer; with `CI` set the examples are the same
in every run.
"""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
os.environ["TETHERFLOW_WEIGHTS"] = "/nowhere"  # no test may find weights that its user has fetched

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("local", **COMMON)
settings.register_profile("ci", derandomize=True, print_blob=True, **COMMON)
settings.register_profile("thorough", max_examples=1000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no process ends with it while the others are idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
