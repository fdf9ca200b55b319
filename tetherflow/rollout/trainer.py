"""Lightning's trainer, set up to predict and nothing else, and to keep quiet."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from tetherflow.recipe import Recipe
from tetherflow.rollout.devices import accelerator_of


def prediction_trainer(recipe: Recipe, folder: Path) -> Trainer:
    """A trainer that predicts in one process, or in several that it spawns.

    Args:
        recipe: says where, and in how many processes.
        folder: where Lightning would write if it wrote anything.

    Raises:
        RecipeError: The machine lacks a device that the recipe asks for.
    """
    accelerator, devices = accelerator_of(recipe)
    _hush()
    several = recipe.runtime.devices > 1
    if several and accelerator == "cpu":
        # Every process has as many threads as one alone would have, so that they compute the same bits.
        # Threads that spin while they wait would then keep the others' from the cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        # Spawned processes start alike from a console script, a module, a notebook or a test.
        strategy=_QuietDDP(start_method="spawn") if several else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


class _QuietDDP(DDPStrategy):
    """Distributed data parallel whose processes, which start with Lightning's own settings, are quiet too."""

    def setup_environment(self) -> None:
        """Silence this process, then set it up."""
        _hush()
        super().setup_environment()


def _hush() -> None:
    """Show only errors of Lightning's loggers, and none of its hints about training set-ups."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
