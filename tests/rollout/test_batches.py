"""What a run's videos are computed with, and in which batches."""

from __future__ import annotations

import os

import pytest

from tetherflow.recipe import load_recipe
from tetherflow.rollout.batches import PromptBatches, threads_of

pytestmark = pytest.mark.usefixtures("toy")


def test_threads_do_not_depend_on_the_number_of_processes() -> None:
    counts = {
        threads_of(load_recipe("fifo", ["backbone.use=toy", f"runtime.devices={devices}"]))
        for devices in (1, 2, 5)
    }
    assert counts == {max(1, len(os.sched_getaffinity(0)) // 2)}
    assert threads_of(load_recipe("fifo", ["backbone.use=toy", "runtime.threads=3"])) == 3


def test_one_process_takes_every_batch() -> None:
    recipe = load_recipe("fifo", ["backbone.use=toy", "rollout.samples=5", "runtime.batch_size=2"])
    batches = list(PromptBatches(recipe).predict_dataloader())
    assert [[item.sample for item in batch] for batch in batches] == [[0, 1], [2, 3], [4]]
