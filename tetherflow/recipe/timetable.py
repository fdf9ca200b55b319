"""When prompts switch, in latent frames."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from tetherflow.plugins import load_backbone
from tetherflow.recipe.model import Recipe
from tetherflow.recipe.parts import LATENT_STRIDE, chunk_frames_of, latent_frames_of
from tetherflow.recipe.problems import Problem


def frame_at(recipe: Recipe, seconds: float) -> int:
    """The first latent frame at or after a time, which is counted as lengths are: 4 video frames each."""
    frames = seconds * load_backbone(recipe.backbone.use).fps / LATENT_STRIDE
    return ceil(round(frames, 6))  # 0.3 s of 20 frames a second are no more than 6


def check_times(recipe: Recipe) -> Iterator[Problem]:
    """Find prompts over time that no chunk of the video would show."""
    length = latent_frames_of(recipe)
    # Given frames, of which the recipe knows no number, shift the chunks' beginnings.
    chunk = chunk_frames_of(recipe) if recipe.rollout.first_frames is None else 1
    for number, prompts in enumerate(recipe.rollout.prompts):
        if isinstance(prompts, str):
            continue
        before = 0
        for index, timed in enumerate(prompts[1:], start=1):
            begin = ceil(frame_at(recipe, timed.at) / chunk) * chunk
            key = ("rollout", "prompts", number, index, "at")
            if begin >= length:
                yield Problem(key, f"{timed.at:g}s is past the last chunk's begin; make the video longer")
            elif begin == before:
                message = f"{timed.at:g}s and {prompts[index - 1].at:g}s begin with the same chunk"
                yield Problem(key, f"{message}, which can show only one prompt; leave more time between")
            before = begin
