"""The videos of a run, in batches that never depend on how many processes share them."""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator
from typing import Final

import attrs
from lightning.pytorch import LightningDataModule

from tetherflow.recipe import Recipe
from tetherflow.rollout.prompts import PromptSchedule, PromptSwitch
from tetherflow.rollout.session import sample_seed

_MOST_THREADS: Final = 8
"""Above this the miniature's small operations cost more in waiting than they save."""


@attrs.frozen
class Item:
    """One video to make.

    Attributes:
        index: its place in the run, from 0.
        prompt: what it shows, at its beginning if that changes.
        sample: which of the prompt's videos it is, from 0.
        seed: seed of its noise; a hash of the recipe's seed, the prompt and the sample.
        switches: the prompts after the first.
    """

    index: int
    prompt: str
    sample: int
    seed: int
    switches: tuple[PromptSwitch, ...] = ()

    @property
    def schedule(self) -> PromptSchedule:
        """What it shows over time."""
        return PromptSchedule(self.prompt, self.switches)


def items_of(recipe: Recipe) -> list[Item]:
    """Every video of a recipe: the samples of the first prompt, then those of the next."""
    rollout = recipe.rollout
    schedules = [PromptSchedule.of(recipe, prompts) for prompts in rollout.prompts]
    pairs = [(schedule, sample) for schedule in schedules for sample in range(rollout.samples)]
    return [
        Item(
            index,
            schedule.prompt,
            sample,
            sample_seed(rollout.seed, schedule.prompt, sample),
            schedule.switches,
        )
        for index, (schedule, sample) in enumerate(pairs)
    ]


def batches_of(recipe: Recipe) -> list[list[Item]]:
    """The videos in batches of `runtime.batch_size`, in order; the last may be smaller.

    Videos whose prompts switch at other times, or otherwise, are in other batches.
    """
    alike: dict[Hashable, list[Item]] = {}
    for item in items_of(recipe):
        alike.setdefault(item.schedule.timetable, []).append(item)
    size = recipe.runtime.batch_size
    batches = [
        items[start : start + size] for items in alike.values() for start in range(0, len(items), size)
    ]
    return sorted(batches, key=lambda batch: batch[0].index)


def threads_of(recipe: Recipe) -> int:
    """CPU threads of a process; the same for any number of processes, since it may change the last bits.

    Half the cores, at most 8, unless the recipe says otherwise. OpenMP's threads spin while they wait for
    each other, so one that loses its core to another program stalls all: on two cores, two threads gain a
    fifth when nothing else runs and cost tenfold when something does.
    """
    if recipe.runtime.threads is not None:
        return recipe.runtime.threads
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores // 2, _MOST_THREADS))


class PromptBatches(LightningDataModule):
    """Hands each process its share of the batches: every `world_size`-th, from its rank on.

    Args:
        recipe: whose videos are to be made.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.batches = batches_of(recipe)

    def share(self) -> list[list[Item]]:
        """The batches of this process; none, if there are more processes than batches."""
        trainer = self.trainer
        rank, size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return self.batches[rank::size]

    def predict_dataloader(self) -> Iterator[list[Item]]:
        """This process's batches, as an iterator: without a length, Lightning has nothing to compare."""
        return iter(self.share())
