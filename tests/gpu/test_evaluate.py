"""Figures on a GPU; run with `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tetherflow.evaluate.drift import measure_drift, with_prompts
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.recipe import load_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_features_are_those_of_the_cpu() -> None:
    frames = torch.randint(0, 256, (70, 3, 128, 128), dtype=torch.uint8)
    features = FrameFeatures()
    torch.testing.assert_close(features(frames.cuda()), features(frames), atol=1e-4, rtol=1e-4)


def test_drift_is_measured_where_the_recipe_runs(tmp_path: Path) -> None:
    prompts = [
        "a red circle and a blue square bounce on a green field",
        "a pink triangle and a red square on blue",
    ]
    recipe = with_prompts(load_recipe("tethercache"), prompts, seconds=10, batch_size=2)
    report = measure_drift([recipe], [10.0], tmp_path, reference_clips=4)
    assert report.device.startswith("cuda")
    assert report.policies[0].figures[0].last.value > 0
