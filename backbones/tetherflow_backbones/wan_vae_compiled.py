"""Wan's decoder with its residual blocks compiled: what lies between two convolutions is one kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResidualBlock
from torch import Tensor, nn

Features = list[Any]
"""A stream's feature cache: a tensor for each causal convolution that has seen frames."""
Compiled = Callable[[WanResidualBlock, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def compile_blocks(decoder: nn.Module, frames: int, backend: str = "inductor") -> None:
    """Compile a decoder's residual blocks, for the chunks of a stream that has begun.

    On a GPU the weights of convolutions in space and time are laid out with channels last, as its tensor
    cores read them; the frames take over that order by themselves.

    Args:
        decoder: the network's decoder.
        frames: latent frames that pass through at once; blocks see a multiple of them. Another number, as at
            a video's ends, is not worth the time that compiling takes.
        backend: the compiler.
    """
    for module in decoder.modules():
        if isinstance(module, WanResidualBlock):
            module.forward = partial(_steady, module, frames, _compiled(backend))
        if isinstance(module, WanCausalConv3d) and module.weight.is_cuda:
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def restore_blocks(decoder: nn.Module) -> None:
    """Compute every residual block as it is written again."""
    for module in decoder.modules():
        if isinstance(module, WanResidualBlock):
            module.__dict__.pop("forward", None)


def _steady(
    block: WanResidualBlock,
    frames: int,
    compiled: Compiled,
    x: Tensor,
    feat_cache: Features | None = None,
    feat_idx: list[int] | None = None,
) -> Tensor:
    """A block's output for features `[B, C, T, H, W]`; takes its place in the feature cache and moves on."""
    place = feat_idx[0] if feat_idx else 0
    seen = feat_cache[place : place + 2] if feat_cache else []
    if feat_idx is None or feat_cache is None or x.shape[2] % frames or any(each is None for each in seen):
        output: Tensor = WanResidualBlock.forward(block, x, feat_cache, feat_idx or [0])
        return output
    # One order in memory, to the strides of a single sample: each order that comes is compiled for anew.
    layout = torch.channels_last_3d if x.is_cuda else torch.contiguous_format
    first, second = (each.clone(memory_format=layout) for each in seen)
    x = x.contiguous(memory_format=layout)
    output, *feat_cache[place : place + 2] = compiled(block, x, first, second)
    feat_idx[0] += 2
    return output


@cache  # so that tuning another decoder, or one again, compiles nothing again
def _compiled(backend: str) -> Compiled:
    # Not `fullgraph`: one variant too many would be an error. Tests hold that nothing breaks a graph.
    compiled: Compiled = torch.compile(_block, backend=backend, dynamic=False)
    return compiled


def _block(
    block: WanResidualBlock, x: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A block's output, and what its two convolutions keep of this chunk, from what they kept of the last."""
    kept: Features = [first, second]
    output = WanResidualBlock.forward(block, x, kept, [0])
    return output, kept[0], kept[1]
