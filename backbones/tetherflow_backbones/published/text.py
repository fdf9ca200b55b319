"""Prompts to embeddings, by a text encoder that is in memory only while it works."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tetherflow.errors import WeightsError
from tetherflow_backbones.published.umt5 import load_umt5


class PromptEncoder:
    """Encodes prompts as Wan2.1 does (arXiv 2503.20314, section 4.2): UMT5, a fixed length, padding zeroed.

    Each prompt is encoded once and by itself, so that its embedding depends on no other; embeddings stay in
    the host's memory (at most 4 MB each). The encoder, UMT5-XXL's 11 GB, is loaded when a prompt
    is new and dropped when the new ones are done.

    Args:
        weights: the encoder's checkpoint.
        tokenizer: folder of its tokenizer.
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
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            self._encode(new)
        rows = [self._known[prompt] for prompt in prompts]
        padded = torch.zeros(len(rows), self.text_len, rows[0].shape[1], dtype=self.dtype)
        for row, tokens in zip(padded, rows, strict=True):
            row[: len(tokens)] = tokens
        return padded.to(self.device)

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> None:
        tokenizer = _load_tokenizer(self.tokenizer)
        network = load_umt5(self.weights, device=self.device, dtype=self.dtype)
        for prompt in prompts:
            tokens = tokenizer(
                clean(prompt),
                padding="max_length",
                truncation=True,
                max_length=self.text_len,
                return_tensors="pt",
            ).to(self.device)
            hidden = network(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
            length = int(tokens["attention_mask"].sum())
            self._known[prompt] = hidden[
                0, :length
            ].cpu()  # what is not kept is the padding, zero by definition
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


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise WeightsError(f"the text encoder's tokenizer is missing: {folder} is not a folder")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(f"{folder} holds no tokenizer that can be read: {reason}") from error
