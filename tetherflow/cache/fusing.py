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
_MOST_MARKED: Final = 1024
"""Kinds of arguments that are kept, of a function whose numbers may move with every call."""


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

    marked: set[tuple[Any, ...]] = set()

    def fused(*arguments: Any, **named: Any) -> Any:
        # A kernel for any number of units takes up to twice as long as one for 14, and a rollout has few
        # numbers. Python's own numbers, which a schedule may move, may still vary. Marking takes as long as a
        # call, and matters only where a kernel is compiled.
        given = (*arguments, *named.values())
        kinds = tuple(map(_kind, given))
        if kinds not in marked:
            for argument in given:
                if isinstance(argument, Tensor):
                    torch._dynamo.mark_static(argument)
            if len(marked) == _MOST_MARKED:
                marked.clear()
            marked.add(kinds)
        return in_one(*arguments, **named)

    return fused


def _kind(argument: Any) -> Any:
    """What of an argument may make a function be compiled anew."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    return type(argument), argument if isinstance(argument, int | float) else None
