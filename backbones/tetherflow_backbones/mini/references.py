"""Held-out clips of a prompt: what its words say, drawn with motions that no training clip has."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tetherflow.errors import PromptError
from tetherflow_backbones.mini.scenes import COLOURS, HELD_OUT, SHAPES, TEMPLATES, Subject, held_out_seeds
from tetherflow_backbones.mini.text import words_of

_EXAMPLE = TEMPLATES[0].format("red", "circle", "blue", "square", "green")


def subject_of(prompt: str) -> Subject:
    """What a prompt says of a scene.

    Figures are a colour before a shape, the back one first, as in `TEMPLATES`; the one other colour is the
    field's. Words besides do not matter.

    Raises:
        PromptError: It does not name two figures and a field.
    """
    words = words_of(prompt)
    figures, fields = [], []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in COLOURS and following in SHAPES:
            figures.append((COLOURS.index(word), SHAPES.index(following)))
        elif word in COLOURS:
            fields.append(COLOURS.index(word))
    if len(figures) != 2 or len(fields) != 1:
        raise PromptError(
            f"the miniature cannot render '{prompt[:80]}', so there is nothing to judge its video against; "
            f"name two figures and a field, as in '{_EXAMPLE}' (colours: {', '.join(COLOURS)}; "
            f"shapes: {', '.join(SHAPES)})"
        )
    (back, back_shape), (front, front_shape) = figures
    return Subject((back, front), (back_shape, front_shape), fields[0])


def clip_seeds(prompt: str, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Held-out seeds of a prompt's clips, int64 `[count]`; the prompt alone decides them."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    return held_out_seeds(int.from_bytes(digest[:8], "big") % HELD_OUT, count, device)
