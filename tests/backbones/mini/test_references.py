"""Held-out clips of a prompt."""

from __future__ import annotations

import torch

from tetherflow_backbones.mini.references import clip_seeds, subject_of
from tetherflow_backbones.mini.scenes import HELD_OUT, TEMPLATES, held_out_seeds, sample_scenes


def test_every_sentence_says_what_its_scene_shows() -> None:
    scenes = sample_scenes(held_out_seeds(0, 200))
    for template in range(len(TEMPLATES)):
        subjects = [subject_of(prompt) for prompt in scenes.prompts(template)]
        assert [list(subject.colours) for subject in subjects] == scenes.colour.tolist()
        assert [list(subject.shapes) for subject in subjects] == scenes.shape.tolist()
        assert [subject.field for subject in subjects] == scenes.field.tolist()


def test_a_subject_fixes_words_and_nothing_else() -> None:
    seeds = held_out_seeds(7, 50)
    free = sample_scenes(seeds)
    subject = subject_of(free.prompts()[0])
    told = sample_scenes(seeds, subject)
    assert len({tuple(prompt.split()) for prompt in told.prompts(template=0)}) == 1
    assert subject_of(told.prompts()[0]) == subject
    for name in ("centre", "velocity", "radius", "angle", "template"):
        assert torch.equal(getattr(told, name), getattr(free, name))
    # Where a scene is of that subject anyway, its colours are the same too.
    assert torch.equal(told.figure_rgb[0], free.figure_rgb[0])
    assert torch.equal(told.field_rgb[0], free.field_rgb[0])


def test_clips_are_never_trained_on() -> None:
    seeds = torch.cat([clip_seeds(f"prompt {index}", 16) for index in range(200)])
    assert int(seeds.min()) >= HELD_OUT
    assert len(seeds.unique()) == len(seeds)
