"""Functions on large tensors as few kernels that read and write each as seldom as can be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, Protocol, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


_VARIANTS: Final = 64
"""Shapes for which a function may be compiled in one process; past them it goes step by step. Torch's own
limit is lower, and holds for the whole process."""


class Fuse(Protocol):
    """What makes kernels of a function on tensors; the function should be a module's own."""

    def __call__(self, function: Function, /) -> Function:
        """A function that computes the same, but for rounding."""
        ...


def step_by_step(function: Function, /) -> Function:
    """The function itself: each of its operations is a kernel of torch's."""
    return function


def compiled(function: Function, /) -> Function:
    """The function compiled, once in a process."""
    return cast("Function", _compiled(function))


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    # A first call is made in the middle of a rollout, where timing one kernel against another misleads.
    in_one = torch.compile(function, options={"triton.autotune_pointwise": False})

    def fused(*arguments: Any, **named: Any) -> Any:
        # A kernel for any number of units takes up to twice as long as one for 14, and a rollout has few
        # numbers. Python's own numbers, which a schedule may move, may still vary.
        for argument in (*arguments, *named.values()):
            if isinstance(argument, Tensor):
                torch._dynamo.mark_static(argument)
        return in_one(*arguments, **named)

    return fused
