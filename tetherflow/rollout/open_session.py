"""From a recipe to an open session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from tetherflow.backbone import Backbone
from tetherflow.recipe import Recipe, backbone_of, layout_of, pipeline_of, unit_of
from tetherflow.rollout.batches import threads_of
from tetherflow.rollout.devices import accelerator_of, dtype_of
from tetherflow.rollout.session import Session

_STRICT: Final = {"auto": None, "strict": True, "deferred": False}


def open_session(recipe: Recipe, device: torch.device, backbone: Backbone | None = None) -> Session:
    """A session that generates what a recipe describes.

    Args:
        recipe: a validated recipe.
        device: where it runs.
        backbone: the recipe's backbone, if it is loaded already.

    Raises:
        WeightsError: The backbone's weights cannot be used.
    """
    dtype = dtype_of(recipe, device)
    return Session(
        backbone or backbone_of(recipe, device, dtype),
        layout_of(recipe),
        pipeline_of(recipe),
        positions=recipe.cache.positions,
        unit=unit_of(recipe),
        strict=_STRICT[recipe.runtime.checks],
        chunk_frames=recipe.rollout.chunk_frames,
        device=device,
        dtype=dtype,
    )


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
        self._loaded: dict[tuple[str, torch.device, torch.dtype, str], Backbone] = {}

    def of(self, recipe: Recipe, device: torch.device) -> Backbone:
        """A recipe's backbone, loaded unless another recipe has had it on the same device in the same type.

        Raises:
            WeightsError: Its weights cannot be used.
        """
        dtype = dtype_of(recipe, device)
        key = (recipe.backbone.model_dump_json(), device, dtype, recipe.runtime.numerics)
        if key not in self._loaded:
            self._loaded[key] = backbone_of(recipe, device, dtype)
        return self._loaded[key]
