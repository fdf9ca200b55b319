"""Rollouts that begin with given latents: an image, or a video to extend."""

from __future__ import annotations

import pytest
import torch

from tests.cache.drive import assert_same, contents
from tests.rollout.rollouts import latents_of, rollout, session_for
from tests.rollout.small import LATENT, Small, small_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_backbone(tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("given", [1, 3, 4, 7])
def test_video_begins_with_given_latents(backbone: Small, given: int) -> None:
    """One latent frame is an image, several are a video to extend."""
    first = torch.randn(1, given, *LATENT, generator=torch.Generator().manual_seed(9))
    session = session_for(backbone)
    chunks = rollout(session, 12, first_latents=first)
    latents = latents_of(chunks)
    assert latents.shape[1] == 12
    assert torch.equal(latents[:, :given], first)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert session.cache is not None
    assert session.cache.frames_written == 12
    other = latents_of(rollout(session, 12, first_latents=first + 1))
    assert not torch.allclose(latents[:, given:], other[:, given:])


def test_extending_finds_the_cache_as_generating_left_it(backbone: Small) -> None:
    generated, extended = session_for(backbone), session_for(backbone)
    latents = latents_of(rollout(generated, 12))
    rollout(extended, 12, first_latents=latents)
    assert generated.cache is not None
    assert extended.cache is not None
    assert torch.equal(generated.cache.origins(), extended.cache.origins())
    assert_same(contents(generated.cache), contents(extended.cache))


def test_given_latents_longer_than_the_video_are_cut(backbone: Small) -> None:
    first = torch.randn(1, 9, *LATENT)
    assert torch.equal(latents_of(rollout(session_for(backbone), 5, first_latents=first)), first[:, :5])


@pytest.mark.parametrize("shape", [(2, 1, *LATENT), (1, 1, 4, 4, 4), (1, 1, 3, 8, 4)])
def test_given_latents_of_another_shape_are_refused(backbone: Small, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"first_latents is \[.*\]; expected \[1, 1, 3, 4, 4\]"):
        rollout(session_for(backbone), first_latents=torch.zeros(shape))
