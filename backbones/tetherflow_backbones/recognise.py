"""Says what a checkpoint is by the names and shapes in it, for those who took the wrong file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tetherflow_backbones.causal_wan.architecture import Architecture

Shapes = Mapping[str, tuple[int, ...]]

WAN_1_3B: Final = Architecture()
"""Wan2.1-T2V-1.3B."""

WAN_14B: Final = Architecture(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
"""Wan2.1-T2V-14B."""

_NAMED: Final = {
    (1536, 30, 16): "Wan2.1 1.3B",
    (5120, 40, 16): "Wan2.1 14B",
    (3072, 30, 48): "Wan2.2 5B",
}

_OTHERS: Final = {
    "lora_A": "a LoRA, to be merged into a transformer with `lora:`",
    "condition_embedder.": "Wan's transformer under diffusers' names; the published names are needed",
    "img_emb.": "Wan's image-to-video transformer, which has an image embedding besides",
    "encoder.downsamples.": "Wan's video autoencoder (Wan2.1_VAE.pth)",
    "encoder.down_blocks.": "Wan's video autoencoder under diffusers' names",
    "pos_embedding.embedding.": "the UMT5 text encoder (models_t5_umt5-xxl-enc-bf16.pth)",
    "SelfAttention.relative_attention_bias": "a T5 text encoder under transformers' names",
}


def looks_like(shapes: Shapes) -> str:
    """What a checkpoint's names and shapes suggest that it is, as the end of a sentence."""
    for mark, kind in _OTHERS.items():
        if any(mark in name for name in shapes):
            return kind
    if "patch_embedding.weight" not in shapes:
        return "no model that is known here"
    dim, channels = shapes["patch_embedding.weight"][:2]
    layers = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")), default=-1)
    name = _NAMED.get((dim, layers, channels), "of no published size")
    ffn = next((shape[0] for name, shape in shapes.items() if name.endswith(".ffn.0.weight")), "?")
    return f"Wan's transformer with dim {dim}, ffn_dim {ffn}, num_layers {layers}, in_dim {channels} ({name})"


def describe(arch: Architecture) -> str:
    """An architecture, in the same words."""
    name = _NAMED.get((arch.dim, arch.num_layers, arch.in_dim), "of no published size")
    return (
        f"dim {arch.dim}, ffn_dim {arch.ffn_dim}, num_layers {arch.num_layers}, in_dim {arch.in_dim} ({name})"
    )
