"""Small transformers with random weights, and the plainest thing they can attend through."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer, WanRotary

SMALL = Architecture(
    dim=24,
    ffn_dim=32,
    num_heads=2,
    num_layers=2,
    freq_dim=8,
    text_dim=12,
    text_len=4,
    in_dim=3,
    out_dim=3,
    patch_size=(1, 2, 2),
)


def transformer(arch: Architecture = SMALL, seed: int = 0, spread: float = 1.0) -> CausalWanTransformer:
    """A transformer whose every parameter is drawn at random, so that none is too tame to matter.

    Args:
        arch: its sizes.
        seed: of the weights.
        spread: deviation of a matrix product's outputs, roughly.
    """
    model = CausalWanTransformer(arch).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim > 1 and "modulation" not in name:
            parameter.copy_(spread * noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.2 * noise)
    return model


def save(model: CausalWanTransformer, path: Path, prefix: str = "model.") -> Path:
    """Write a checkpoint under the published names."""
    save_file({prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


class Alone:
    """Attention of a pass's tokens among themselves, at positions from `start` on."""

    def __init__(self, arch: Architecture, grid: tuple[int, int], frames: int, start: int = 0) -> None:
        self.rotary = WanRotary(arch.head_dim, grid, torch.float64)
        self.positions = torch.arange(start, start + frames)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        frames = len(self.positions)
        query, key = (
            self.rotary.rotate(x.unflatten(1, (frames, -1)), self.positions).flatten(1, 2)
            for x in (query, key)
        )
        out = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        return out.transpose(1, 2)
