"""Where kernels of our own are found, and whether they run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


@cache
def kernels(module: str) -> Any:
    """A module of kernels in Triton; None where it cannot be imported, as without Triton."""
    try:
        return import_module(module)
    except ImportError:
        return None


def runs(what: str, kernel: Callable[[], object]) -> bool:
    """Whether a kernel runs, found out by running it; if not, a warning says what does without."""
    try:
        kernel()
    except Exception as error:  # a compiler that does not know the device may say so in any way
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"{what} without a kernel of its own ({reason})", RuntimeWarning, stacklevel=3)
        return False
    return True
