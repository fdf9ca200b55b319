"""Merging adapters: the merged weights do what base and adapter do side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.backbones.causal_wan.models import SMALL, save, transformer
from tetherflow.errors import WeightsError
from tetherflow_backbones.causal_wan.checkpoint import load_transformer

RANK = 2
LAYERS = [f"blocks.{n}.{m}" for n in range(2) for m in ("self_attn.q", "cross_attn.o", "ffn.0", "ffn.2")]


def adapter(middle: str = "") -> dict[str, Tensor]:
    """An adapter under PEFT's names."""
    state, generator = transformer().state_dict(), torch.Generator().manual_seed(3)
    found = {}
    for layer in LAYERS:
        out, inner = state[f"{layer}.weight"].shape
        for factor, shape in (("A", (RANK, inner)), ("B", (out, RANK))):
            name = f"base_model.model.{layer}.lora_{factor}.{middle}weight"
            found[name] = torch.randn(shape, generator=generator)
    return found


def merged(tmp_path: Path, content: object, alpha: float | None = 6.0) -> dict[str, Tensor]:
    base, lora = save(transformer(), tmp_path / "base.safetensors"), tmp_path / "lora.pt"
    torch.save(content, lora)
    return load_transformer(
        base, SMALL, device=torch.device("cpu"), dtype=torch.float32, lora=lora, lora_alpha=alpha
    ).state_dict()


@pytest.mark.parametrize("middle", ["", "default."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_merged_weights_act_as_base_and_adapter(tmp_path: Path, middle: str, wrapped: bool) -> None:
    lora, base = adapter(middle), transformer().state_dict()
    found = merged(tmp_path, {"generator_lora": lora, "critic_lora": {}} if wrapped else lora)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    for name, weight in base.items():
        layer = name.removesuffix(".weight")
        if layer not in LAYERS:
            assert torch.equal(found[name], weight)
            continue
        a, b = (lora[f"base_model.model.{layer}.lora_{factor}.{middle}weight"] for factor in "AB")
        rows = x[:, : weight.shape[1]]
        aside = functional.linear(rows, weight) + 6.0 / RANK * functional.linear(
            functional.linear(rows, a), b
        )
        torch.testing.assert_close(functional.linear(rows, found[name]), aside, atol=1e-4, rtol=1e-4)


def test_the_scale_is_the_rank_by_default(tmp_path: Path) -> None:
    implied, named = (merged(tmp_path, adapter(), alpha) for alpha in (None, float(RANK)))
    assert all(torch.equal(implied[name], named[name]) for name in named)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "blocks.1.ffn.2",
            "blocks.7.ffn.2",
            "adapts blocks.7.ffn.2.weight, which the transformer does not have",
        ),
        ("lora_A", "lora_magnitude", "is no LoRA under PEFT's names: it holds base_model"),
        (
            "blocks.1.ffn.2.lora_A",
            "blocks.1.ffn.9.lora_A",
            "is incomplete: of blocks.1.ffn.[29].weight it holds lora_[AB] alone",
        ),
        ("blocks.0.ffn.0", "blocks.0.ffn.2", r"adapts blocks.0.ffn.2.weight as \[32, 24\]; it is \[24, 32\]"),
    ],
)
def test_adapters_that_do_not_fit(tmp_path: Path, old: str, new: str, text: str) -> None:
    lora = {name: tensor for name, tensor in adapter().items() if new not in name or "ffn.9" in new}
    content = {name.replace(old, new): tensor for name, tensor in lora.items()}
    with pytest.raises(WeightsError, match=text):
        merged(tmp_path, content)
