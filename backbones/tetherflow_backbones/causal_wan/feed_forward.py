"""The feed-forward network of a block, whose hidden tokens are the transformer's largest tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tetherflow.fp8 import Fp8Linear, Fp8LinearGelu
from tetherflow_backbones.causal_wan.add_norm import Tokens


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between, under the published names `0` and `2`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))

    def fuse(self) -> None:
        """Let the first product apply the GELU itself; for inference only."""
        if type(self[0]) is nn.Linear:
            self[0], self[1] = LinearGelu(self[0]), nn.Identity()

    def quantise(self) -> None:
        """Keep the weights in 8 bits; the originals are freed."""
        widen, _, narrow = self
        if isinstance(widen, nn.Linear) and isinstance(narrow, nn.Linear):
            self[0], self[1], self[2] = Fp8LinearGelu(widen), nn.Identity(), Fp8Linear(narrow)

    def forward(self, tokens: Tokens) -> Tensor:
        """Transform tokens `[B, L, dim]`."""
        widen, activation, narrow = self
        hidden = product(widen, tokens)
        result: Tensor = narrow(*hidden) if isinstance(hidden, tuple) else narrow(activation(hidden))
        return result


def product(linear: nn.Module, tokens: Tokens) -> Any:
    """What a linear layer makes of tokens; one in 8 bits must know what their norms do not exceed.

    Raises:
        TypeError: It does not know.
    """
    if not in_8_bits(linear):
        return linear(tokens.values)
    if tokens.limit is None:
        raise TypeError("a product in 8 bits must know how long tokens can be")
    if isinstance(linear, Fp8LinearGelu):
        return linear(tokens.values, tokens.limit, tokens.squares)
    return linear(tokens.values, tokens.limit)


def in_8_bits(linear: nn.Module | None) -> bool:
    """Whether a layer computes in 8 bits."""
    return isinstance(linear, Fp8Linear | Fp8LinearGelu)


class LinearGelu(nn.Linear):
    """A linear layer with its GELU (tanh), in the product's own kernel on a GPU.

    That spares a read and a write of the result, and rounds it once instead of twice.

    Args:
        linear: the layer whose parameters it takes.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens `[..., in]` to `[..., out]`."""
        if x.is_cuda:
            result: Tensor = linear_gelu(x, self.weight, self.bias)
            return result
        return functional.gelu(super().forward(x), approximate="tanh")


# An operator of its own, because a compiler would take the product and its GELU apart again.
@torch.library.custom_op("tetherflow::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (tanh) of a linear layer, `[..., in]` to `[..., out]`, in the product's own kernel on a GPU."""
    if not x.is_cuda:  # where torch's fused product applies the other GELU
        return functional.gelu(functional.linear(x, weight, bias), approximate="tanh")
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    result: Tensor = rows.unflatten(0, x.shape[:-1])
    return result


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
