"""Prompts in words: a small vocabulary with unknown words, and an encoder trained beside the transformer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tetherflow_backbones.mini.scenes import COLOURS, SHAPES

PAD, UNKNOWN = 0, 1

VOCABULARY = (
    "<pad>",
    "<unk>",
    *COLOURS,
    *SHAPES,
    *("a", "an", "the", "and", "with", "on", "in", "of", "over", "across", "around", "against"),
    *("two", "shapes"),
    *("bounce", "bounces", "bouncing", "move", "moves", "moving", "field", "background", "video", "scene"),
)
"""Every known word. The order fixes the rows of the embedding: append, never insert."""

_INDEX = {word: index for index, word in enumerate(VOCABULARY)}
_WORD = re.compile(r"[^\W_]+")
_LONGEST_READ = 4096  # characters; text_len words fit many times over


def words_of(prompt: str) -> list[str]:
    """Words of a prompt, lower-cased; punctuation and symbols separate words."""
    return _WORD.findall(prompt[:_LONGEST_READ].lower())


def tokenise(prompts: Sequence[str], text_len: int) -> Tensor:
    """Words of each prompt as rows of the vocabulary, int64 `[B, text_len]`, padded with `PAD`.

    Words beyond `text_len` are dropped.
    """
    rows = []
    for prompt in prompts:
        words = words_of(prompt)[:text_len]
        row = [_INDEX.get(word, UNKNOWN) for word in words]
        rows.append(row + [PAD] * (text_len - len(row)))
    return torch.tensor(rows, dtype=torch.int64).reshape(len(prompts), text_len)


class WordEncoder(nn.Module):
    """Embeds words, each with its place and its neighbours, so that "red" in "red circle" binds to "circle".

    Cross-attention has no order of its own; without the neighbours a prompt would be a bag of words.

    Args:
        text_dim: Width of an embedding.
        text_len: Words a prompt is padded to.
    """

    def __init__(self, text_dim: int, text_len: int) -> None:
        super().__init__()
        self.text_len = text_len
        self.words = nn.Embedding(len(VOCABULARY), text_dim)
        self.places = nn.Parameter(torch.randn(text_len, text_dim) * 0.3)
        self.neighbours = nn.Conv1d(text_dim, text_dim, kernel_size=5, padding=2)
        self.out = nn.Linear(text_dim, text_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed words `[B, text_len]` as `[B, text_len, text_dim]`; padding is zero, as Wan has it."""
        present = (ids != PAD)[..., None]
        x = (self.words(ids) + self.places) * present
        near = functional.gelu(self.neighbours(x.transpose(1, 2)).transpose(1, 2))
        result: Tensor = (x + self.out(near)) * present
        return result

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts, `[B, text_len, text_dim]`, on the encoder's device."""
        result: Tensor = self(tokenise(prompts, self.text_len).to(self.places.device))
        return result
