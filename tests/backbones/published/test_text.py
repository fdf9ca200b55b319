"""Prompts to embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.backbones.published import wan_t5
from tests.backbones.published.formats import save_pt, save_tokenizer, umt5, umt5_original
from tetherflow.errors import WeightsError
from tetherflow_backbones.published.text import PromptEncoder, clean, load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def encoder(tmp_path: Path) -> PromptEncoder:
    weights = save_pt(tmp_path / "t5.pth", umt5_original(umt5()), prefix="")
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json")
    return PromptEncoder(weights, tokenizer, text_len=8, device=CPU, dtype=torch.float32)


def test_padding_is_zero_and_the_rest_is_the_encoders(encoder: PromptEncoder) -> None:
    found = encoder.encode(["a red circle"])
    assert found.shape == (1, 8, 12)
    assert not found[0, 4:].any()  # three words and the end
    ids = torch.tensor([4, 5, 7, 1])
    wanted = wan_t5.encode(umt5_original(umt5()), ids, torch.ones(4))
    torch.testing.assert_close(found[0, :4], wanted, atol=1e-5, rtol=1e-5)


def test_an_embedding_depends_on_its_prompt_alone(encoder: PromptEncoder) -> None:
    together = encoder.encode(["a red circle", "blue", "a red circle"])
    alone = PromptEncoder(
        encoder.weights, encoder.tokenizer, text_len=8, device=CPU, dtype=torch.float32
    ).encode(["blue"])
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[0], together[2])


def test_long_prompts_are_cut(encoder: PromptEncoder) -> None:
    found = encoder.encode(["red " * 50])
    assert found.shape == (1, 8, 12)
    assert found[0].any(dim=1).all()


def test_known_prompts_need_no_encoder(encoder: PromptEncoder) -> None:
    """What was encoded is kept; the network is not: with its file gone, only new prompts fail."""
    first = encoder.encode(["a red circle"])
    encoder.weights.unlink()
    assert torch.equal(encoder.encode(["a red circle"]), first)
    with pytest.raises(WeightsError, match=r"weights are missing: .*t5.pth is not a file"):
        encoder.encode(["a red circle", "blue"])


def test_expected_prompts_are_known_then(encoder: PromptEncoder) -> None:
    encoder.expect(["a red circle", "blue"])
    encoder.weights.unlink()
    assert encoder.encode(["blue"]).any()
    assert encoder.encode(["a red circle"]).any()


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  a\tred \n circle ", "a red circle"),
        ("red &amp;amp; blue", "red & blue"),
        ("schÃ¶n", "schön"),
        ("“red”", '"red"'),
    ],
)
def test_prompts_are_cleaned_as_wan_cleans_them(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


def test_missing_tokenizer(encoder: PromptEncoder, tmp_path: Path) -> None:
    encoder.tokenizer = tmp_path / "nowhere"
    with pytest.raises(WeightsError, match=r"tokenizer is missing: .*nowhere is not a file"):
        encoder.encode(["red"])


def test_tokenizer_of_a_folder(encoder: PromptEncoder, tmp_path: Path) -> None:
    by_file = encoder.encode(["a red circle"])
    again = PromptEncoder(encoder.weights, tmp_path, text_len=8, device=CPU, dtype=torch.float32)
    assert torch.equal(again.encode(["a red circle"]), by_file)


def test_the_files_own_normalisation_is_used(encoder: PromptEncoder) -> None:
    """The full-width letters of a prompt become plain ones by the tokenizer's NFKC, and are then known."""
    ids = load_tokenizer(encoder.tokenizer, 8).encode("ｒｅｄ circle").ids
    assert ids == [5, 7, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("content", ["", "{}", "not a tokenizer"])
def test_file_that_is_no_tokenizer(encoder: PromptEncoder, content: str) -> None:
    encoder.tokenizer.write_text(content)
    with pytest.raises(WeightsError, match="is no tokenizer that can be read"):
        encoder.encode(["red"])


def test_tokenizer_of_another_model(encoder: PromptEncoder) -> None:
    text = encoder.tokenizer.read_text().replace("<pad>", "[PAD]")
    encoder.tokenizer.write_text(text)
    with pytest.raises(WeightsError, match="is no tokenizer of UMT5: it has no token <pad>"):
        encoder.encode(["red"])
