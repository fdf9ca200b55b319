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
import torch._dynamo
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from tetherflow_backbones.mini.train.devices import agreed, check_same, leave, own_device, rank, world
from tetherflow_backbones.mini.train.muon import ORTHOGONAL, Muon

AGREE_EVERY = 10
"""Steps between which several ranks' clocks may run apart; to agree, the host waits for the device."""

PLATEAU = 0.6
"""How much of a budget is used when the learning rate begins to fall."""

BESIDES = 0.3
"""AdamW's learning rate beside Muon's, which suits three times as high a one."""


def say(message: str) -> None:
    """Print on rank 0, at once, so that a log that is cut off still ends with the last message."""
    if rank() == 0:
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
        """Learning rate relative to its peak: a linear rise, a plateau, and a linear fall to the end."""
        fall = (1.0 - self.progress(step, seconds)) / (1.0 - PLATEAU)
        return min(1.0, (step + 1) / self.warmup) * min(1.0, max(fall, 0.002))


class Steps(IterableDataset[int]):
    """An endless stream of step numbers: the data itself is made on the device."""

    def __iter__(self) -> Iterator[int]:
        step = 0
        while True:
            yield step
            step += 1


class Pace(Callback):
    """Sets the learning rate, ends training with the budget, reports, and writes checkpoints.

    Args:
        budget: Steps and time.
        checkpoint: The file of the stage's checkpoints.

    Attributes:
        seconds: Time used, as rank 0 measured it: what the schedule follows on every rank.
        loss: The last reported one, of rank 0's clips.
    """

    def __init__(self, budget: Budget, checkpoint: Path) -> None:
        self.budget = budget
        self.checkpoint = checkpoint
        self.seconds = 0.0
        self.loss = math.nan
        self._own_seconds = 0.0
        self._since = self._reported = time.monotonic()
        self._sum: Tensor | None = None
        self._count = 0

    def state_dict(self) -> dict[str, Any]:
        """Time used so far, so that a resumed stage goes on with its schedule."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the schedule of a checkpoint."""
        self.seconds = self._own_seconds = float(state_dict["seconds"])

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
        self._own_seconds += now - self._since
        self._since = now
        loss = outputs["loss"].detach()
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1
        step = trainer.global_step
        if world() == 1 or step < AGREE_EVERY or step % AGREE_EVERY == 0:
            self.seconds = agreed(self._own_seconds, pl_module.device)
        done = self.budget.progress(step, self.seconds) >= 1
        if step % self.budget.report_every == 0 or done:
            self._report(step, trainer.optimizers[0].param_groups[0]["lr"])
        if done:
            trainer.should_stop = True
        if step % self.budget.checkpoint_every == 0 or done:
            save(trainer, self.checkpoint)
            if isinstance(pl_module, Averaged) and rank() == 0:
                pl_module.hand_on()

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
        muon: Whether hidden matrices take Muon's steps.
    """

    def __init__(self, network: nn.Module, rate: float, decay: float, seed: int, muon: bool) -> None:
        super().__init__()
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.peak = rate
        self.decay = decay
        self.seed = seed
        self.muon = muon

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Muon for the hidden matrices, AdamW for the rest, of which only matrices decay."""
        named = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        hidden = {name for name, p in named if self.muon and is_hidden(name, p)}
        groups = [
            {"params": [p for name, p in named if name in hidden], "weight_decay": 0.01, ORTHOGONAL: True},
            {
                "params": [p for name, p in named if name not in hidden and p.ndim >= 2],
                "weight_decay": 0.01,
                ORTHOGONAL: False,
            },
            {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0, ORTHOGONAL: False},
        ]
        for group in groups:
            beside = self.muon and not group[ORTHOGONAL]
            group["peak"] = self.peak * (BESIDES if beside else 1.0)
        groups = [group for group in groups if group["params"]]
        return Muon(groups, lr=self.peak, betas=(0.9, 0.98), fused=self.device.type == "cuda")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip by norm, without waiting for the device."""
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average towards the weights."""
        step = self.trainer.global_step
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    def hand_on(self) -> None:
        """Write the average as the stage's result; called with each checkpoint, so that little is lost."""

    def generator(self) -> torch.Generator:
        """This step's source of randomness: of seed, step and rank, so that resuming repeats it."""
        generator = torch.Generator(self.device)
        generator.manual_seed((self.seed * 1_000_003 + self.trainer.global_step) * 1024 + rank())
        return generator


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix of hidden features: no modulation, word or end of a transformer."""
    ends = ("modulation", "embedding", "words.", "head.")
    return parameter.ndim >= 2 and min(parameter.shape[:2]) > 1 and not any(end in name for end in ends)


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
    cuda, several = torch.cuda.is_available(), world() > 1
    if cuda:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    # Gradients travel after the whole backward pass; to overlap it would split the compiled graphs.
    torch._dynamo.config.optimize_ddp = False
    pace = Pace(budget, checkpoint)
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=world() if several or not cuda else [own_device().index],
        strategy=DDPStrategy(gradient_as_bucket_view=True) if several else "auto",
        use_distributed_sampler=False,
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
    module.to(own_device())  # Lightning hands a module back on the CPU
    check_same(module.network)
    leave()
    return pace


def save(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint whole or not at all; every rank calls it, rank 0 writes."""
    partial = path.with_suffix(".partial")
    trainer.save_checkpoint(partial)
    if rank() == 0:
        partial.replace(path)


def record(path: Path, facts: dict[str, Any]) -> None:
    """Write what a stage did, for the model card: the given facts, the machine, versions and the date."""
    cuda = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})"
    facts = facts | {
        "machine": machine,
        "devices": world(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
    path.write_text(json.dumps(facts, indent=2) + "\n")
    say(f"{path.name}: {json.dumps(facts)}")
