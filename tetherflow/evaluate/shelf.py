"""Statistics of videos on disk, so that a measurement that was interrupted goes on where it stopped.

A file is named by everything that decides what is in it: the prompts and seeds, the policy, the weights, the
type and kind of device, and the code itself. Statistics of an older policy or of other weights are therefore
never taken for those of the present one; they only lie there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import attrs
import torch
from safetensors import SafetensorError

from tetherflow.backbone import Backbone
from tetherflow.errors import OutputError
from tetherflow.evaluate import features
from tetherflow.evaluate.windows import WindowPlan, WindowStatistics
from tetherflow.plugins import load_backbone, load_schedule, load_stage
from tetherflow.recipe import Recipe
from tetherflow.rollout.batches import Item
from tetherflow.rollout.devices import dtype_of
from tetherflow.rollout.writers import safe_name

_DECISIVE: Final = (
    "tetherflow.cache",
    "tetherflow.pipeline",
    "tetherflow.rollout",
    "tetherflow.scheduling",
    "tetherflow.fp8",
    "tetherflow.fp8_products",
    "tetherflow.evaluate.feature_weights",
    "tetherflow.evaluate.features",
    "tetherflow.evaluate.frechet",
    "tetherflow.evaluate.measure",
    "tetherflow.evaluate.window_decoder",
    "tetherflow.evaluate.windows",
)
"""Modules and packages of the framework whose code decides what is generated and what is kept of it; how
figures are made of that does not count."""


@attrs.frozen
class Shelf:
    """Where the statistics of one recipe's videos are kept.

    Attributes:
        folder: the folder; recipes may share it.
        name: the recipe's, for people who look into the folder.
        key: hash of what the statistics depend on besides prompts and seeds.
    """

    folder: Path
    name: str
    key: str

    @classmethod
    def of(
        cls, folder: Path, recipe: Recipe, plan: WindowPlan, backbone: Backbone, device: torch.device
    ) -> Shelf:
        """The shelf of a recipe.

        Args:
            folder: where statistics are kept.
            recipe: what is measured.
            plan: the windows that are measured.
            backbone: the recipe's, loaded.
            device: where it is measured.
        """
        depends = {
            "recipe": recipe.model_dump(mode="json", include={"backbone", "cache", "stages"}),
            "chunk_frames": recipe.rollout.chunk_frames,
            "seconds": recipe.rollout.seconds,
            "numerics": recipe.runtime.numerics,
            "matmul": recipe.runtime.matmul,
            "plan": attrs.asdict(plan),
            "device": device.type,
            "dtype": str(dtype_of(recipe, device)),
            "weights": backbone.weights_digest(),
            "features": features.SHA256,
            "torch": torch.__version__,
            "code": code_digest(recipe),
        }
        name = recipe.output.name or "recipe"
        return cls(folder, name, hashlib.sha256(json.dumps(depends).encode()).hexdigest())

    def path(self, batch: Sequence[Item]) -> Path:
        """Where the statistics of a batch are."""
        videos = "\0".join(f"{item.seed} {item.prompt}" for item in batch)
        digest = hashlib.sha256(f"{self.key}{videos}".encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / f"{safe_name(self.name, batch[0].index)}-{digest[:16]}.safetensors"

    def save(self, batch: Sequence[Item], statistics: WindowStatistics) -> None:
        """Keep the statistics of a batch: all of them, or nothing.

        Raises:
            OutputError: The folder cannot be written.
        """
        target = self.path(batch)
        draft = target.with_suffix(f".{os.getpid()}.part")
        try:
            statistics.save(draft)
            draft.replace(target)
        except (OSError, SafetensorError) as error:
            draft.unlink(missing_ok=True)
            raise OutputError(f"cannot write {target}: {error}") from error

    def load(self, batches: Sequence[Sequence[Item]]) -> WindowStatistics:
        """Statistics of all videos of the batches, in order.

        Raises:
            EvaluationError: They are not there, or cannot be read.
        """
        return WindowStatistics.concatenate([WindowStatistics.load(self.path(batch)) for batch in batches])


def code_digest(recipe: Recipe) -> str:
    """SHA-256 over the Python files of the engine, and of the packages that a recipe's plugins come from."""
    classes: list[type] = [load_backbone(recipe.backbone.use)]
    for stage, entry in recipe.stages.entries:
        classes.append(load_stage(entry.use, stage))
        classes += [load_schedule(schedule.use) for schedule in entry.schedules.values()]
    packages = {cls.__module__.partition(".")[0] for cls in classes}
    digest = hashlib.sha256()
    for module in (*_DECISIVE, *sorted(packages)):
        for path in _files(module):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _files(module: str) -> Iterator[Path]:
    """Python files of a module or of a whole package."""
    spec = find_spec(module)
    folders = spec.submodule_search_locations if spec else None
    if folders:
        for folder in folders:
            yield from sorted(Path(folder).rglob("*.py"))
    elif spec and spec.origin:
        yield Path(spec.origin)
