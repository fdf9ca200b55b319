"""Matrix products in 8-bit floating point, for transformers that stand the rounding.

A tensor has one scale, made from a limit that is known before the tensor is: of layers after a norm, from how
long a token can be. Numbers of e4m3 keep three bits after the leading one over four decimal orders, so that
the limit need not be near, and nothing has to be looked at before it is rounded.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from tetherflow.errors import KernelError
from tetherflow.fp8_products import (
    FP8,
    LARGEST,
    SMALLEST,
    fp8_linear,
    fp8_linear_gelu,
    has_kernel,
    scaled_product,
)

_MULTIPLE: Final = 16
"""Both widths of a matrix must be a multiple of it for the tensor cores."""


def quantise(x: Tensor, limit: Tensor) -> Tensor:
    """A tensor in e4m3, scaled so that `limit`, a float32 scalar, is e4m3's largest number.

    What exceeds the limit becomes the limit. What is ten thousand times smaller keeps its three bits.
    """
    # Whether the conversion itself saturates differs between devices and compilers.
    return (x.float() * (LARGEST / limit.clamp(min=SMALLEST))).clamp(-LARGEST, LARGEST).to(FP8)


class _Fp8(nn.Module):
    """A linear layer whose weight is kept in e4m3.

    Attributes:
        weight: e4m3 `[out, in]`.
        unit: what a product in e4m3 stands for, but for the limit of its rows: the weight's limit / 448².
        bias: `[out]`, of the type that the weight was of.
        fused: whether cuBLASLt is called directly.

    Args:
        linear: the layer it stands in for; its weight is not kept.

    Raises:
        KernelError: Its widths do not suit.
    """

    weight: Tensor
    unit: Tensor
    bias: Tensor | None
    _gelu: ClassVar[bool] = False

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if self.in_features % _MULTIPLE or self.out_features % _MULTIPLE:
            raise KernelError(
                f"a matrix of {self.out_features}x{self.in_features} does not suit fp8, whose widths are "
                f"multiples of {_MULTIPLE}; use runtime.matmul: precision"
            )
        weight = linear.weight.detach()
        limit = weight.abs().amax().float()
        self.dtype = weight.dtype
        self.register_buffer("weight", quantise(weight, limit))
        self.register_buffer("unit", limit.clamp(min=SMALLEST) / LARGEST**2)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        fusible = self.bias is not None and self.bias.dtype == torch.bfloat16
        self.fused = fusible and has_kernel(weight.device, gelu=self._gelu)

    def product(self, rows: Tensor, limit: Tensor) -> Tensor:
        """Product of e4m3 rows `[N, in]`, quantised within a limit, with the weight, plus the bias."""
        if self.fused and self.bias is not None:
            result: Tensor = fp8_linear(rows, self.weight, self.bias, limit, self.unit)
            return result
        return scaled_product(rows, self.weight, self.bias, limit, self.unit, self.dtype)


class Fp8Linear(_Fp8):
    """A linear layer whose weight is kept, and whose product is computed, in e4m3.

    Each factor is rounded to 3 bits after the leading one, so a product of many terms is off by about 4 % of
    its deviation.

    Args:
        linear: the layer it stands in for; its weight is not kept.

    Raises:
        KernelError: Its widths do not suit.
    """

    def forward(self, x: Tensor, limit: Tensor) -> Tensor:
        """The product with the weight, plus the bias.

        Args:
            x: `[..., in]`; if it is in e4m3, it has been quantised within the limit.
            limit: what no number of `x` exceeds, float32 scalar. One that does counts as the limit.

        Returns:
            `[..., out]`, of the type that the weight was of.
        """
        rows = (x if x.dtype == FP8 else quantise(x, limit)).flatten(0, -2)
        result: Tensor = self.product(rows, limit).unflatten(0, x.shape[:-1])
        return result


class Fp8LinearGelu(_Fp8):
    """A linear layer in e4m3 with its GELU (tanh), whose result is in e4m3 too.

    On a GPU with `nvmath-python` installed, product, GELU and rounding are one kernel.

    Args:
        linear: the layer it stands in for; its weight is not kept.

    Raises:
        KernelError: Its widths do not suit.
    """

    gain: Tensor
    offset: Tensor
    _gelu = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        lengths = torch.linalg.vector_norm(self.weight.float() * self.unit * LARGEST, dim=1)
        self.register_buffer("gain", lengths.amax())
        offset = torch.zeros_like(self.gain) if self.bias is None else self.bias.abs().amax().float()
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor, limit: Tensor, squares: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """GELU of the product with the weight, plus the bias.

        Args:
            x: `[..., in]`; if it is in e4m3, it has been quantised within the limit.
            limit: what no number of `x` exceeds, float32 scalar.
            squares: squared norms of what `x` was before it was quantised, float32 `[...]`; needed then.

        Returns:
            `[..., out]` in e4m3, and the limit that it was quantised within.

        Raises:
            TypeError: It has been quantised, but nothing says how long it was.
        """
        tokens = x.flatten(0, -2)
        if squares is None:
            if tokens.dtype == FP8:
                raise TypeError("tokens in e4m3 do not say how long they were; give their squared norms")
            squares = tokens.float().square().sum(dim=-1)
        rows = tokens if tokens.dtype == FP8 else quantise(tokens, limit)
        # |w·x| is at most |w| |x|, and |GELU(x)| at most |x|. How long tokens are is looked at, in the kernel
        # that quantises them: what is known beforehand may be far more, and times the longest row too far.
        longest = squares.amax().sqrt()
        out_limit = (longest * self.gain + self.offset).clamp(min=SMALLEST)
        if self.fused and self.bias is not None:
            small = fp8_linear_gelu(rows, self.weight, self.bias, limit, self.unit, LARGEST / out_limit)
        else:
            small = quantise(gelu(self.product(rows, limit)), out_limit)
        return small.unflatten(0, x.shape[:-1]), out_limit


def gelu(x: Tensor) -> Tensor:
    """GELU (tanh) in float32 by an exponential, a faster kernel: x / (1 + exp(−2u)) is x (1 + tanh u) / 2."""
    wide = x.float()
    u = (2 / math.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    return wide * torch.sigmoid(2 * u)


def require_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a device that does not compute such products, found out by computing one.

    Raises:
        KernelError: It does not.
    """
    linear = nn.Linear(_MULTIPLE, _MULTIPLE, device=device, dtype=dtype)
    ones = torch.ones(_MULTIPLE, _MULTIPLE, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            Fp8Linear(linear)(ones, ones.new_ones((), dtype=torch.float32))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        kind = str(dtype).removeprefix("torch.")
        raise KernelError(
            f"fp8 matrix products do not run on {device} with {kind} ({reason}); "
            "use runtime.matmul: precision, or bfloat16 on a GPU of compute capability 8.9 or newer"
        ) from error
