"""Where one branch of a block ends and the next begins: tokens take in what it gave, and are normalised."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from tetherflow.fp8_products import FP8
from tetherflow.own_kernels import kernels, runs
from tetherflow_backbones.causal_wan.modulation import gated, modulate

KERNELS: Final = "tetherflow_backbones.causal_wan.kernels"


class Tokens(NamedTuple):
    """Tokens as a linear layer takes them.

    Attributes:
        values: `[B, L, dim]`; in e4m3 if they have been quantised within the limit.
        limit: what no number of them exceeds, float32 scalar, being what no normalised token's norm exceeds,
            or no value that was attended to; None unless the layer is in 8 bits.
        squares: their norms squared, float32 `[B, L]`; None unless `add_norm` has quantised them.
    """

    values: Tensor
    limit: Tensor | None = None
    squares: Tensor | None = None


def add_norm(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    norm: nn.LayerNorm,
    modulation: tuple[Tensor, Tensor] | None,
    limit: Tensor | None,
    *,
    fused: bool,
) -> tuple[Tensor, Tokens]:
    """Add what a branch gave to the tokens, and normalise them for the next.

    Args:
        x: tokens `[B, L, dim]`.
        branch: what is added, likewise.
        gate: what it is multiplied by, by frame, `[B, F, 1, dim]`.
        norm: has a scale and a shift of its own unless a modulation follows.
        modulation: shift and scale of what follows the norm, each likewise.
        limit: Euclidean norm that no token exceeds then, float32 scalar, for a layer in 8 bits.
        fused: whether to do so in one kernel, which has no gradient.

    Returns:
        The sum, and the same normalised.
    """
    if not fused:
        x = x + (branch if gate is None else gated(branch, gate))
        normal: Tensor = norm(x)
        if modulation is not None:
            normal = modulate(normal, *modulation)
        return x, Tokens(normal, limit)
    shift, scale = (norm.bias, norm.weight) if modulation is None else modulation
    shift, scale = (part.view(1, 1, 1, -1) if part.dim() == 1 else part for part in (shift, scale))
    x, values, squares = add_norm_fused(x, branch, gate, scale, shift, norm.eps, limit)
    return x, Tokens(values, limit, None if limit is None else squares)


# An operator of its own: the kernel that a compiler makes of it reads everything twice.
@torch.library.custom_op("tetherflow::add_norm", mutates_args=(), device_types="cuda")
def add_norm_fused(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    limit: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_norm` in one kernel; scale, shift and gate are each `[B or 1, F or 1, 1, dim]`.

    Returns:
        The sum `[B, L, dim]`; the same normalised, in e4m3 if there is a limit; and the squared norms of
        that, float32 `[B, L]`, empty if there is none.
    """
    out, values, squares = _empty(x, limit)
    kernels(KERNELS).add_norm(
        x.contiguous(), branch.contiguous(), gate, scale, shift, eps, limit, out, values, squares
    )
    return out, values, squares


def _empty(x: Tensor, limit: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what `add_norm_fused` returns."""
    squares = x.new_empty(x.shape[:2] if limit is not None else (0,), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=x.dtype if limit is None else FP8), squares


add_norm_fused.register_fake(lambda x, *given: _empty(x, given[-1]))


def add_norm_runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `add_norm_fused` runs on a device, and with it the like of it."""
    if device.type != "cuda" or kernels(KERNELS) is None:
        return False
    ones = torch.ones(1, 1, 16, device=device, dtype=dtype)
    return runs(
        "norms and rotations do",
        lambda: add_norm_fused(ones, ones, None, ones[None], ones[None], 1e-6, None),
    )
