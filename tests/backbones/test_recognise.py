"""What a checkpoint looks like."""

from __future__ import annotations

import pytest
import torch

from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer
from tetherflow_backbones.recognise import WAN_1_3B, WAN_14B, describe, looks_like


@pytest.mark.parametrize(("arch", "name"), [(WAN_1_3B, "Wan2.1 1.3B"), (WAN_14B, "Wan2.1 14B")])
def test_published_transformers(arch: Architecture, name: str) -> None:
    with torch.device("meta"):
        state = CausalWanTransformer(arch).state_dict()
    seen = looks_like({key: tuple(tensor.shape) for key, tensor in state.items()})
    assert seen == f"Wan's transformer with {describe(arch)}"
    assert name in seen


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("base_model.model.blocks.0.ffn.0.lora_A.weight", "a LoRA"),
        ("condition_embedder.time_proj.weight", "under diffusers' names"),
        ("img_emb.proj.0.weight", "image-to-video"),
        ("encoder.downsamples.0.residual.0.gamma", "video autoencoder"),
        ("encoder.down_blocks.0.norm1.gamma", "autoencoder under diffusers' names"),
        ("blocks.0.pos_embedding.embedding.weight", "UMT5"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "T5"),
        ("lm_head.weight", "no model that is known here"),
    ],
)
def test_other_models(name: str, kind: str) -> None:
    assert kind in looks_like({name: (1,)})
