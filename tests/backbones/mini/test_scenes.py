"""The procedural video: deterministic, held-out seeds apart, and as its prompts say."""

from __future__ import annotations

import pytest
import torch

from tetherflow_backbones.mini.scenes import (
    COLOURS,
    HELD_OUT,
    PALETTE,
    SHAPES,
    TEMPLATES,
    held_out_seeds,
    render,
    render_bytes,
    sample_scenes,
    training_seeds,
)


def test_a_scene_follows_from_its_seed_alone() -> None:
    together = render_bytes(sample_scenes(held_out_seeds(0, 5)), 9, 32)
    alone = render_bytes(sample_scenes(held_out_seeds(3, 1)), 9, 32)
    assert torch.equal(together[3], alone[0])
    assert not torch.equal(together[2], together[3])


def test_held_out_seeds_are_never_trained_on() -> None:
    assert int(held_out_seeds(0, 1000).min()) >= HELD_OUT
    for start in (0, HELD_OUT - 3, 7 * HELD_OUT + 5):
        assert int(training_seeds(start, 1000).max()) < HELD_OUT
    late = held_out_seeds(HELD_OUT - 3, 10)
    assert int(late.min()) >= HELD_OUT


def test_the_three_colours_differ_and_all_occur() -> None:
    scenes = sample_scenes(training_seeds(0, 4000))
    back, front = scenes.colour.unbind(1)
    assert not (back == front).any()
    assert not (back == scenes.field).any()
    assert not (front == scenes.field).any()
    for drawn in (back, front, scenes.field):
        assert drawn.bincount(minlength=len(COLOURS)).min() > 4000 / len(COLOURS) * 0.7
    assert scenes.template.bincount(minlength=len(TEMPLATES)).min() > 400


def test_the_prompt_names_what_is_drawn() -> None:
    scenes = sample_scenes(held_out_seeds(0, 60))
    first = render(scenes, 1, 64)[:, 0]
    palette = torch.tensor(list(PALETTE.values())) / 255
    for index, prompt in enumerate(scenes.prompts()):
        figure = int(scenes.colour[index, 1])
        assert COLOURS[figure] in prompt
        assert COLOURS[int(scenes.field[index])] in prompt
        assert SHAPES[int(scenes.shape[index, 1])] in prompt
        x, y = (scenes.centre[index, 1] * 64).long().tolist()
        nearest = (first[index, :, y, x] - palette).norm(dim=1).argmin()
        assert int(nearest) == figure, prompt


def test_articles_suit_the_word() -> None:
    prompts = " ".join(sample_scenes(training_seeds(0, 500)).prompts())
    assert "a orange" not in prompts
    assert "an orange" in prompts


@pytest.mark.parametrize("frames", [81, 400])
def test_figures_stay_inside_and_move(frames: int) -> None:
    scenes = sample_scenes(held_out_seeds(0, 8))
    video = render(scenes, frames, 32)
    moved = video.diff(dim=1).abs().amax(dim=(2, 3, 4))
    assert (moved > 0.02).float().mean() > 0.95
    assert video.min() >= 0
    assert video.max() <= 1


def test_a_later_start_continues_the_same_video() -> None:
    scenes = sample_scenes(held_out_seeds(0, 2))
    whole = render(scenes, 12, 32)
    assert torch.allclose(whole[:, 8:], render(scenes, 4, 32, start=8), atol=1e-4)
