"""From a recipe to an open session."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Final

import torch

from tetherflow.backbone import Backbone
from tetherflow.cache.attention import Attention, attention_for
from tetherflow.cache.fusing import Fuse, compiled, step_by_step
from tetherflow.recipe import Recipe, backbone_of, layout_of, pipeline_of, unit_of
from tetherflow.rollout.batches import threads_of
from tetherflow.rollout.devices import accelerator_of, dtype_of
from tetherflow.rollout.session import Session
from tetherflow.tuning import Tuning

LARGE: Final = 1024
"""Width of a transformer from which on compiling is worth its time."""
_STRICT: Final = {"auto": None, "strict": True, "deferred": False}


def open_session(recipe: Recipe, device: torch.device, backbone: Backbone | None = None) -> Session:
    """A session that generates what a recipe describes.

    Args:
        recipe: a validated recipe.
        device: where it runs.
        backbone: the recipe's backbone, if it is loaded already.

    Raises:
        WeightsError: The backbone's weights cannot be used.
        KernelError: An attention kernel that the recipe asks for does not run there.
    """
    dtype = dtype_of(recipe, device)
    backbone = backbone or load_tuned(recipe, device)
    return Session(
        backbone,
        layout_of(recipe),
        pipeline_of(recipe),
        positions=recipe.cache.positions,
        unit=unit_of(recipe),
        strict=_STRICT[recipe.runtime.checks],
        chunk_frames=recipe.rollout.chunk_frames,
        device=device,
        dtype=dtype,
        attention=_attention_of(recipe, device, backbone),
        low_memory=recipe.runtime.memory == "low",
        fuse=_fuse_of(recipe, device, backbone),
        graphs=recipe.runtime.graphs == "auto",
        coarse=recipe.runtime.matmul == "fp8",
    )


def load_tuned(recipe: Recipe, device: torch.device) -> Backbone:
    """A recipe's backbone, loaded and set to compute as `runtime` asks.

    Raises:
        WeightsError: Its weights cannot be used.
        KernelError: The device does not compute what the recipe asks for.
    """
    backbone = backbone_of(recipe, device, dtype_of(recipe, device))
    backbone.tune(tuning_of(recipe, device, backbone))
    return backbone


def tuning_of(recipe: Recipe, device: torch.device, backbone: Backbone) -> Tuning:
    """What a recipe's `runtime` asks of its backbone."""
    return Tuning(
        attention=_attention_of(recipe, device, backbone),
        compile=worth_compiling(recipe, device, backbone),
        products=recipe.runtime.matmul,
        chunk_frames=recipe.rollout.chunk_frames or backbone.sampler.chunk_frames,
        low_memory=recipe.runtime.memory == "low",
    )


def worth_compiling(recipe: Recipe, device: torch.device, backbone: Backbone) -> bool:
    """Whether to compile: as the recipe says, or if the model is large and runs on a GPU."""
    runtime, shape = recipe.runtime, backbone.cache_shape
    if runtime.compile != "auto":
        return runtime.compile == "always"
    return runtime.numerics == "fast" and device.type == "cuda" and shape.heads * shape.head_dim >= LARGE


def _attention_of(recipe: Recipe, device: torch.device, backbone: Backbone) -> Attention:
    head_dim, fuse = backbone.cache_shape.head_dim, _fuse_of(recipe, device, backbone)
    return attention_for(recipe.runtime.attention, device, dtype_of(recipe, device), head_dim, fuse)


def _fuse_of(recipe: Recipe, device: torch.device, backbone: Backbone) -> Fuse:
    return compiled if worth_compiling(recipe, device, backbone) else step_by_step


def first_device(recipe: Recipe) -> torch.device:
    """The device of a recipe's first process, or of its only one.

    Raises:
        RecipeError: The recipe asks for GPUs that are not there.
    """
    accelerator, devices = accelerator_of(recipe)
    return torch.device(accelerator, devices[0]) if isinstance(devices, list) else torch.device(accelerator)


@contextmanager
def threads_for(recipe: Recipe) -> Iterator[None]:
    """Compute with a recipe's number of CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(recipe))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Backbones:
    """Loads each backbone once, for recipes that are compared in one process."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Hashable, ...], Backbone] = {}

    def of(self, recipe: Recipe, device: torch.device) -> Backbone:
        """A recipe's backbone, loaded unless another recipe has had it on the same device, computing alike.

        Raises:
            WeightsError: Its weights cannot be used.
            KernelError: The device does not compute what the recipe asks for.
        """
        runtime = recipe.runtime
        alike = (runtime.numerics, runtime.attention, runtime.compile, runtime.matmul, runtime.memory)
        frames = recipe.rollout.chunk_frames
        key = (recipe.backbone.model_dump_json(), device, dtype_of(recipe, device), frames, *alike)
        if key not in self._loaded:
            self._loaded[key] = load_tuned(recipe, device)
        return self._loaded[key]
