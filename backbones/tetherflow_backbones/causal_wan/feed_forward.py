"""The feed-forward network of a block, whose hidden tokens are the transformer's largest tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between, under the published names `0` and `2`.

    Attributes:
        fused: whether the first product applies the GELU itself where the device can, which spares a read
            and a write of the hidden tokens, and rounds them once instead of twice.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens `[..., dim]`."""
        first = self[0]
        hidden: Tensor
        if self.fused and x.is_cuda and isinstance(first, nn.Linear):
            hidden = linear_gelu(x, first.weight, first.bias)
        else:
            hidden = self[1](first(x))
        result: Tensor = self[2](hidden)
        return result


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
