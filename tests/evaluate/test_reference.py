"""Real clips of the videos' prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tetherflow.backbone import Backbone
from tetherflow.errors import EvaluationError
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.frechet import Moments, frechet_distance
from tetherflow.evaluate.reference import Reference
from tetherflow.plugins import load_backbone

PROMPTS = ["one", "two", "three"]


@pytest.fixture
def backbone(toy: Path) -> Backbone:
    kind = load_backbone("toy")
    return kind(kind.Options(), device=torch.device("cpu"))


def test_clips_are_kept_by_prompt(backbone: Backbone) -> None:
    reference = Reference.of(backbone, PROMPTS, 4, 9)
    features = FrameFeatures()
    clips = [features(clip) for clip in backbone.reference_clips(PROMPTS, 4, 9)]
    prompts = reference.prompts
    assert prompts.count.tolist() == [36] * 3
    for index in range(3):
        expected = torch.cat(clips[4 * index : 4 * index + 4]).double()
        torch.testing.assert_close(prompts.total[index], expected.sum(dim=0))
        torch.testing.assert_close(prompts.outer[index], expected.T @ expected)


def test_one_clip_of_each_prompt_is_held_against_the_others() -> None:
    """With two clips a prompt there are few choices; each figure is one of theirs."""
    vectors = torch.randn(4, 50, 64, generator=torch.Generator().manual_seed(0))
    reference = Reference(Moments.of(vectors), each=2)

    def distance(first: int, second: int) -> float:
        held, others = [first, 2 + second], [1 - first, 3 - second]
        sets = [Moments.of(vectors[choice].flatten(0, 1)).gaussian() for choice in (others, held)]
        return float(frechet_distance(*sets))

    known = [distance(first, second) for first in (0, 1) for second in (0, 1)]
    floor = reference.against_itself(resamples=400)
    assert (floor.low, floor.high) == pytest.approx((min(known), max(known)))
    assert floor.low < floor.value < floor.high
    assert reference.against_itself(resamples=400) == floor


def test_too_few_clips_are_refused(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="1 reference clips of a prompt are no distribution"):
        Reference.of(backbone, PROMPTS, 1, 9)
    clips = list(backbone.reference_clips(PROMPTS, 2, 9))
    monkeypatch.setattr(backbone, "reference_clips", lambda *_: clips[1:])
    with pytest.raises(EvaluationError, match=r"Toy gave 5 reference clips.* 2 of 9 frames"):
        Reference.of(backbone, PROMPTS, 2, 9)
