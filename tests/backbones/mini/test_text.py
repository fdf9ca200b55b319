"""Prompts in words: any text is accepted, order is kept, padding is zero."""

from __future__ import annotations

import pytest
import torch

from tetherflow_backbones.mini.scenes import sample_scenes, training_seeds
from tetherflow_backbones.mini.text import PAD, UNKNOWN, VOCABULARY, WordEncoder, tokenise


@pytest.mark.parametrize(
    "prompt", ["", " \n\t", "🙂🙂", "a/b\\c\n../d", "x" * 10_000, "red circle " * 1000, "\0", "ΑΒΓ ñandú"]
)
def test_any_prompt_encodes(prompt: str) -> None:
    torch.manual_seed(0)
    embedded = WordEncoder(16, 24).encode([prompt, "a red circle"])
    assert embedded.shape == (2, 24, 16)
    assert embedded.isfinite().all()


def test_an_empty_prompt_is_all_zero() -> None:
    assert not WordEncoder(16, 24).encode([""]).any()


def test_case_and_punctuation_do_not_matter() -> None:
    assert torch.equal(tokenise(["A RED circle,\nbouncing!"], 24), tokenise(["a red circle bouncing"], 24))


def test_unknown_words_are_told_apart_from_padding() -> None:
    ids = tokenise(["red zeppelin"], 4)[0].tolist()
    assert ids == [VOCABULARY.index("red"), UNKNOWN, PAD, PAD]


def test_every_word_of_the_scenes_is_known() -> None:
    scenes = sample_scenes(training_seeds(0, 300))
    assert not (tokenise(scenes.prompts(), 24) == UNKNOWN).any()


def test_longer_prompts_are_cut_not_wrapped() -> None:
    words = ["red"] * 24 + ["blue"] * 50
    assert torch.equal(tokenise([" ".join(words)], 24), tokenise(["red " * 24], 24))


def test_colours_bind_to_their_shapes() -> None:
    torch.manual_seed(0)
    one, other = WordEncoder(16, 24).encode(
        ["a red circle and a blue square", "a blue circle and a red square"]
    )
    circle = 2
    assert not torch.allclose(one[circle], other[circle], atol=1e-3)


def test_the_vocabulary_has_no_doubles() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
