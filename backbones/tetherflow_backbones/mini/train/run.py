"""What every training stage shares: a budget of steps and time, Lightning's loop, checkpoints, a report."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import lightning
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset


def say(message: str) -> None:
    """Print at once, so that a log that is cut off still ends with the last message."""
    print(message, flush=True)  # noqa: T201


@attrs.frozen
class Budget:
    """How long a stage trains: until its steps or its minutes are used up, whichever comes first.

    Attributes:
        steps: Optimiser steps at most.
        minutes: Wall-clock minutes at most, compiling included; None for no limit.
        warmup: Steps over which the learning rate rises.
        checkpoint_every: Steps between checkpoints.
        report_every: Steps between lines of the report.
    """

    steps: int
    minutes: float | None = None
    warmup: int = 200
    checkpoint_every: int = 1000
    report_every: int = 50

    def progress(self, step: int, seconds: float) -> float:
        """How much of the budget is used, 0 to 1."""
        timed = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(step / self.steps, timed))

    def rate(self, step: int, seconds: float) -> float:
        """Learning rate relative to its peak: a linear rise, then a linear fall to the budget's end."""
        return min(1.0, (step + 1) / self.warmup) * max(1.0 - self.progress(step, seconds), 0.002)


class Steps(IterableDataset[int]):
    """An endless stream of step numbers: the data itself is made on the device."""

    def __iter__(self) -> Iterator[int]:
        step = 0
        while True:
            yield step
            step += 1


class Pace(Callback):
    """Sets the learning rate, ends training with the budget, reports, and writes checkpoints."""

    def __init__(self, budget: Budget, checkpoint: Path) -> None:
        self.budget = budget
        self.checkpoint = checkpoint
        self.seconds = 0.0
        self.loss = math.nan
        self._since = self._reported = time.monotonic()
        self._sum: Tensor | None = None
        self._count = 0

    def state_dict(self) -> dict[str, Any]:
        """Time used so far, so that a resumed stage goes on with its schedule."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the schedule of a checkpoint."""
        self.seconds = float(state_dict["seconds"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = self._reported = time.monotonic()
        if self.budget.progress(trainer.global_step, self.seconds) >= 1:
            trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set this step's learning rate."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * self.budget.rate(trainer.global_step, self.seconds)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, report and, when due, save or stop."""
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        loss = outputs["loss"].detach()
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1
        step = trainer.global_step
        done = self.budget.progress(step, self.seconds) >= 1
        if step % self.budget.report_every == 0 or done:
            self._report(step, trainer.optimizers[0].param_groups[0]["lr"])
        if done:
            trainer.should_stop = True
        if step % self.budget.checkpoint_every == 0 or done:
            save(trainer, self.checkpoint)

    def _report(self, step: int, rate: float) -> None:
        if self._sum is None:
            return
        self.loss = float(self._sum) / self._count  # the loop's only wait for the device
        now = time.monotonic()
        speed = self._count / max(now - self._reported, 1e-9)
        spent = f"step {step:6d}  {self.seconds:7.1f} s"
        say(f"{spent}  loss {self.loss:.5f}  lr {rate:.2e}  {speed:6.2f} steps/s")
        if not math.isfinite(self.loss):
            raise FloatingPointError(f"the loss is {self.loss} at step {step}")
        self._sum, self._count, self._reported = None, 0, now


class Averaged(LightningModule):
    """A module in training and the moving average of its weights, which is what a stage hands on.

    Args:
        network: What is trained.
        rate: Peak learning rate.
        decay: Of the average, once warmed up.
        seed: Of all of the stage's random draws.
    """

    def __init__(self, network: nn.Module, rate: float, decay: float, seed: int) -> None:
        super().__init__()
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.peak = rate
        self.decay = decay
        self.seed = seed

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; only matrices decay."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [{**group, "peak": self.peak} for group in groups]
        return torch.optim.AdamW(groups, lr=self.peak, betas=(0.9, 0.98), fused=self.device.type == "cuda")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip by norm, without waiting for the device."""
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average towards the weights."""
        step = self.trainer.global_step
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    def generator(self) -> torch.Generator:
        """This step's source of randomness: follows from seed and step, so that resuming repeats it."""
        generator = torch.Generator(self.device)
        generator.manual_seed(self.seed * 1_000_003 + self.trainer.global_step)
        return generator


def fit(module: Averaged, budget: Budget, checkpoint: Path, resume: bool) -> Pace:
    """Train a stage to the end of its budget.

    Args:
        module: The stage.
        budget: Steps and time.
        checkpoint: The stage's checkpoint file, written as it goes.
        resume: Whether to go on from that file, if there is one.

    Returns:
        The callback that kept pace, with the time used and the last loss.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    pace = Pace(budget, checkpoint)
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        precision="bf16-mixed" if cuda else "32-true",
        max_steps=budget.steps,
        max_epochs=-1,
        callbacks=[pace],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    found = resume and checkpoint.exists()
    if found:
        say(f"resuming from {checkpoint}")
    trainer.fit(
        module,
        DataLoader(Steps(), batch_size=None),
        ckpt_path=checkpoint if found else None,
        weights_only=True if found else None,
    )
    module.to("cuda" if cuda else "cpu")  # Lightning hands a module back on the CPU
    return pace


def save(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    trainer.save_checkpoint(partial)
    partial.replace(path)


def record(path: Path, facts: dict[str, Any]) -> None:
    """Write what a stage did, for the model card: the given facts, the machine, versions and the date."""
    cuda = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})"
    facts = facts | {
        "machine": machine,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
    path.write_text(json.dumps(facts, indent=2) + "\n")
    say(f"{path.name}: {json.dumps(facts)}")
