"""What a run's videos are computed with, and in which batches."""

from __future__ import annotations

import os

import pytest

from tetherflow.recipe import load_recipe
from tetherflow.rollout.batches import PromptBatches, batches_of, items_of, threads_of
from tetherflow.rollout.prompts import PromptSwitch

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


TIMED = (
    "rollout.prompts=[a, [{at: 0s, prompt: b}, {at: 2s, prompt: c, switch: flush}], d, "
    "[{at: 0s, prompt: e}, {at: 2s, prompt: f, switch: flush}], [{at: 0s, prompt: b}, {at: 2s, prompt: c}]]"
)


def test_only_videos_of_one_timetable_share_a_batch() -> None:
    recipe = load_recipe(
        "fifo", ["backbone.use=toy", TIMED, "rollout.seconds=8", "rollout.samples=2", "runtime.batch_size=3"]
    )
    batches = batches_of(recipe)
    assert [[item.index for item in batch] for batch in batches] == [[0, 1, 4], [2, 3, 6], [5], [7], [8, 9]]
    assert all(len({item.schedule.timetable for item in batch}) == 1 for batch in batches)
    assert batches[1][0].switches == (PromptSwitch(8, "c", "flush"),)


def test_seed_is_the_first_prompts() -> None:
    """So that a video begins as without the later prompts."""
    timed = items_of(load_recipe("fifo", ["backbone.use=toy", TIMED, "rollout.seconds=8"]))
    plain = items_of(load_recipe("fifo", ["backbone.use=toy", "rollout.prompts=[a, b, d, e, b]"]))
    assert [(item.prompt, item.seed) for item in timed] == [(item.prompt, item.seed) for item in plain]
