"""Prompts to embeddings, by a text encoder that is in memory only while it works."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tetherflow.errors import WeightsError
from tetherflow_backbones.published.umt5 import load_umt5

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING: Final = "<pad>"


class PromptEncoder:
    """Encodes prompts as Wan2.1 does (arXiv 2503.20314, section 4.2): UMT5, a fixed length, padding zeroed.

    Each prompt is encoded once and by itself, so that its embedding depends on no other; embeddings stay in
    the host's memory (at most 4 MB each). The encoder, UMT5-XXL's 11 GB, is loaded when a prompt
    is new and dropped when the new ones are done.

    Args:
        weights: the encoder's checkpoint.
        tokenizer: its `tokenizer.json`, or the folder with it.
        text_len: tokens that a prompt is padded to, or cut to.
        device: where the encoder runs.
        dtype: its type, and the embeddings'.
    """

    def __init__(
        self, weights: Path, tokenizer: Path, *, text_len: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.weights = weights
        self.tokenizer = tokenizer
        self.text_len = text_len
        self.device = device
        self.dtype = dtype
        self._known: dict[str, Tensor] = {}

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings `[B, text_len, text_dim]` of B prompts, on the device, padding zeroed.

        Raises:
            WeightsError: The encoder or its tokenizer cannot be used.
        """
        self.expect(prompts)
        rows = [self._known[prompt] for prompt in prompts]
        padded = torch.zeros(len(rows), self.text_len, rows[0].shape[1], dtype=self.dtype)
        for row, tokens in zip(padded, rows, strict=True):
            row[: len(tokens)] = tokens
        return padded.to(self.device)

    def expect(self, prompts: Sequence[str]) -> None:
        """Encode those of some prompts that are new, all of them while the encoder is in memory.

        Raises:
            WeightsError: The encoder or its tokenizer cannot be used.
        """
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            self._encode(new)

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> None:
        tokenizer = load_tokenizer(self.tokenizer, self.text_len)
        network = load_umt5(self.weights, device=self.device, dtype=self.dtype)
        for prompt in prompts:
            tokens = tokenizer.encode(clean(prompt))
            ids, mask = (
                torch.tensor([row], device=self.device) for row in (tokens.ids, tokens.attention_mask)
            )
            hidden = network(ids, attention_mask=mask).last_hidden_state
            # What is not kept is the padding, zero by definition.
            self._known[prompt] = hidden[0, : sum(tokens.attention_mask)].cpu()
        del network
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def clean(prompt: str) -> str:
    """A prompt without mistaken encodings, HTML escapes and repeated white space, as Wan2.1 cleans it.

    Raises:
        WeightsError: ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise WeightsError(
            "cleaning prompts needs ftfy, which is not installed: pip install 'tetherflow[wan]'"
        ) from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def tokenizer_file(path: Path) -> Path:
    """The file of a tokenizer, of which the file or its folder is given."""
    return path / "tokenizer.json" if path.is_dir() else path


def load_tokenizer(path: Path, text_len: int) -> Tokenizer:
    """A tokenizer exactly as `tokenizer.json` describes it, which pads and cuts to a length.

    transformers' own class for it rebuilds the tokenizer from the vocabulary alone, without the file's rules
    for normalising text, and differently in different versions.

    Raises:
        WeightsError: The file is missing or is none, or tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise WeightsError(
            "prompts need tokenizers, which is not installed: pip install 'tetherflow[wan]'"
        ) from error
    file = tokenizer_file(path)
    if not file.is_file():
        raise WeightsError(f"the text encoder's tokenizer is missing: {file} is not a file")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise WeightsError(f"{file} is no tokenizer that can be read: {error}") from error
    if (padding := tokenizer.token_to_id(PADDING)) is None:
        raise WeightsError(f"{file} is no tokenizer of UMT5: it has no token {PADDING}")
    tokenizer.enable_truncation(text_len)
    tokenizer.enable_padding(pad_id=padding, pad_token=PADDING, length=text_len)
    return tokenizer
