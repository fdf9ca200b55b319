"""Matrix products in 8-bit floating point, for transformers that stand the rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from tetherflow.errors import KernelError

FP8: Final = torch.float8_e4m3fn
LARGEST: Final = torch.finfo(FP8).max  # 448
_MULTIPLE: Final = 16
"""Both widths of a matrix must be a multiple of it for the tensor cores."""


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of `x` `[N, width]` scaled to fill e4m3's range.

    Returns:
        The rows, e4m3 `[N, width]`, and what each must be multiplied by, float32 `[N, 1]`.
    """
    wide = x.float()
    # A row of zeros stays one: its scale only must not be zero.
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def quantise_within(x: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor scaled so that `limit`, which it does not exceed, is the largest number of e4m3.

    The limit need not be near: what is a thousand times smaller keeps its three bits. But one number that is
    far larger than the others takes bits from all of them, in every sample of a batch.

    Returns:
        The tensor, e4m3, and what it must be multiplied by, a float32 scalar.
    """
    wide = limit.float().clamp(min=1e-12)
    return (x.float() * (LARGEST / wide)).clamp(-LARGEST, LARGEST).to(FP8), wide / LARGEST


def scaled_product(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Product of quantised rows `[N, width]` with a quantised weight `[out, width]`, `[N, out]`.

    Args:
        rows: e4m3.
        row_scale: float32 `[N, 1]`, or a scalar if `weight_scale` is one.
        weight: e4m3.
        weight_scale: float32 `[out, 1]`, or a scalar.
        bias: `[out]`, of type `dtype`.
        dtype: type of the result.
    """
    return torch._scaled_mm(
        rows,
        weight.t(),
        scale_a=row_scale,
        scale_b=weight_scale.t(),
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )


class _Fp8(nn.Module):
    """A linear layer whose weight is kept, and whose product is computed, in e4m3.

    Args:
        linear: the layer it stands in for; its weight is not kept.
        quantise: gives the weight in e4m3, and its scale.

    Raises:
        KernelError: Its widths do not suit.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, quantise: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if self.in_features % _MULTIPLE or self.out_features % _MULTIPLE:
            raise KernelError(
                f"a matrix of {self.out_features}x{self.in_features} does not suit fp8, whose widths are "
                f"multiples of {_MULTIPLE}; use runtime.matmul: precision"
            )
        weight, scale = quantise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def _product(self, x: Tensor, small: Tensor, scale: Tensor) -> Tensor:
        """The product of `x` `[..., in]`, quantised to rows of some scale, of its type."""
        out = scaled_product(small, scale, self.weight, self.scale, self.bias, x.dtype)
        result: Tensor = out.unflatten(0, x.shape[:-1])
        return result


class Fp8Linear(_Fp8):
    """A linear layer in e4m3, scaled by the row.

    The weight has a scale for each output, the input one for each token, found anew in every call. Each
    factor is rounded to 3 bits after the leading one, so a product of many terms is off by about 4 % of its
    deviation.

    Args:
        linear: the layer it stands in for; its weight is not kept.

    Raises:
        KernelError: Its widths do not suit.
    """

    farthest: Tensor
    offset: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, quantise_rows)
        farthest = (self.weight.float() * self.scale).abs().sum(dim=1).amax()
        self.register_buffer("farthest", farthest)
        offset = torch.zeros_like(farthest) if self.bias is None else self.bias.abs().amax().float()
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """The product of `x` `[..., in]` with the weight, plus the bias: `[..., out]`, of x's type."""
        return self._product(x, *quantise_rows(x.flatten(0, -2)))

    def limit(self, x: Tensor) -> Tensor:
        """What no number of `forward(x)` exceeds, a float32 scalar: max |x| · max Σ_i |w_i| + max |b|."""
        # By the rows' scales, which a compiler finds but once.
        return quantise_rows(x.flatten(0, -2))[1].amax() * LARGEST * self.farthest + self.offset


class Fp8LinearWithin(_Fp8):
    """A linear layer in e4m3 for inputs that are known not to exceed a limit.

    One scale each for the weight and the input spares looking for every token's largest number first, and is
    faster than many.

    Args:
        linear: the layer it stands in for; its weight is not kept.

    Raises:
        KernelError: Its widths do not suit.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, lambda weight: quantise_within(weight, weight.abs().amax()))

    def forward(self, x: Tensor, limit: Tensor) -> Tensor:
        """The product of `x` `[..., in]`, within a scalar limit, with the weight, plus the bias."""
        return self._product(x, *quantise_within(x.flatten(0, -2), limit))


def require_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a device that does not compute such products, found out by computing one.

    Raises:
        KernelError: It does not.
    """
    linear = nn.Linear(_MULTIPLE, _MULTIPLE, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            Fp8Linear(linear)(torch.ones(_MULTIPLE, _MULTIPLE, device=device, dtype=dtype))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        kind = str(dtype).removeprefix("torch.")
        raise KernelError(
            f"fp8 matrix products do not run on {device} with {kind} ({reason}); "
            "use runtime.matmul: precision, or bfloat16 on a GPU of compute capability 8.9 or newer"
        ) from error
