"""Which devices a run uses, and how much memory they held."""

from __future__ import annotations

import resource
import sys

import torch

from tetherflow.errors import RecipeError
from tetherflow.recipe import Recipe


def accelerator_of(recipe: Recipe) -> tuple[str, int | list[int]]:
    """What Lightning's trainer is to use: `cpu` and how many processes, or `cuda` and which GPUs.

    Raises:
        RecipeError: The recipe asks for GPUs that are not there.
    """
    runtime = recipe.runtime
    there = torch.cuda.device_count()
    name, _, number = runtime.device.partition(":")
    if name == "auto":
        name = "cuda" if there else "cpu"
    if name == "cpu":
        return "cpu", runtime.devices
    wanted = int(number) + 1 if number else runtime.devices
    if wanted > there:
        raise RecipeError(
            f"runtime: device '{runtime.device}' with devices {runtime.devices} needs {wanted} CUDA devices, "
            f"but {there} are there; use --set runtime.device=cpu, or fewer devices"
        )
    return "cuda", [int(number)] if number else list(range(runtime.devices))


def dtype_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The transformer's and the cache's type on a device."""
    precision = recipe.runtime.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def device_name(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return str(device)


def peak_memory(device: torch.device) -> int:
    """The most memory this process held so far, in bytes: of a GPU, or of the machine on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
