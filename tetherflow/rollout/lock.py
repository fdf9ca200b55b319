"""What a run depended on, so that it can be run again and compared."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import attrs

import tetherflow
from tetherflow.plugins import BACKBONES, POLICIES, provider
from tetherflow.recipe import Recipe
from tetherflow.rollout.batches import items_of, threads_of
from tetherflow.rollout.devices import device_name
from tetherflow.rollout.session import Session

_PACKAGES: Final = (
    "torch",
    "lightning",
    "diffusers",
    "transformers",
    "tokenizers",
    "ftfy",
    "pluggy",
    "pydantic",
    "numpy",
    "av",
    "safetensors",
    "flash-attn-4",
    "nvmath-python",
)


def lock_of(recipe: Recipe, session: Session) -> dict[str, Any]:
    """Versions, weights, seeds and device of a run.

    Args:
        recipe: what is run.
        session: its session, opened.
    """
    uses = [(BACKBONES, recipe.backbone.use)]
    for _, entry in recipe.stages.entries:
        uses += [(POLICIES, one.use) for one in (entry, *entry.schedules.values())]
    return {
        "tetherflow": tetherflow.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "plugins": {name: _provider(group, name) for group, name in uses},
        "weights_sha256": session.backbone.weights_digest(),
        "device": device_name(session.device),
        "devices": recipe.runtime.devices,
        "dtype": str(session.dtype).removeprefix("torch."),
        "attention": session.attention.name,
        "numerics": recipe.runtime.numerics,
        "threads": threads_of(recipe),
        "seeds": [attrs.asdict(item) for item in items_of(recipe)],
    }


def _provider(group: str, name: str) -> dict[str, str]:
    distribution, number = provider(group, name)
    return {"distribution": distribution, "version": number}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
