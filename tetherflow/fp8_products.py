"""Products of 8-bit matrices on cuBLASLt's kernels, one of which applies a GELU and rounds to 8 bits again.

PyTorch's own 8-bit product ends with the bias, and has memory set to zero before it for some shapes. So
cuBLASLt is called through `nvmath-python`, where that is installed.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FP8: Final = torch.float8_e4m3fn
LARGEST: Final = torch.finfo(FP8).max  # 448
SMALLEST: Final = 1e-12
"""A limit is at least this, so that zeros stay zeros."""
_OLDEST: Final = (8, 9)
"""Compute capability from which on GPUs multiply 8-bit numbers."""


def has_kernel(device: torch.device, *, gelu: bool) -> bool:
    """Whether a device has a kernel for 8-bit products, with a GELU or without, found out by asking."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _OLDEST:
        return False
    return _plan(device, 128, 128, 128, gelu=gelu) is not None


def scaled_product(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_scale: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """PyTorch's own product of what `fp8_linear` takes, of type `dtype`, which the bias has too."""
    return torch._scaled_mm(
        rows,
        weight.t(),
        scale_a=row_scale,
        scale_b=weight_scale,
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )


# Operators of their own, as a compiler cannot look into them.
@torch.library.custom_op("tetherflow::fp8_linear", mutates_args=())
def fp8_linear(rows: Tensor, weight: Tensor, bias: Tensor, row_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """A linear layer on e4m3 rows `[N, in]`: bfloat16 `[N, out]`.

    Args:
        rows: e4m3 `[N, in]`.
        weight: e4m3 `[out, in]`.
        bias: bfloat16 `[out]`.
        row_scale: what rows are to be multiplied by, float32 scalar.
        weight_scale: what the weight is to be multiplied by, float32 scalar.
    """
    plan = _plan(rows.device, *rows.shape, len(weight), gelu=False) if rows.is_cuda else None
    if plan is None:
        return scaled_product(rows, weight, bias, row_scale, weight_scale, bias.dtype)
    return plan(rows, weight, bias, row_scale, weight_scale)


fp8_linear.register_fake(lambda rows, weight, bias, *_: bias.new_empty(len(rows), len(weight)))


@torch.library.custom_op("tetherflow::fp8_linear_gelu", mutates_args=())
def fp8_linear_gelu(
    rows: Tensor, weight: Tensor, bias: Tensor, row_scale: Tensor, weight_scale: Tensor, scale: Tensor
) -> Tensor:
    """GELU (tanh) of a linear layer on e4m3 rows `[N, in]`, times `scale`: e4m3 `[N, out]`.

    Args:
        rows: as of `fp8_linear`, and so is what follows.
        weight: e4m3 `[out, in]`.
        bias: bfloat16 `[out]`.
        row_scale: float32 scalar.
        weight_scale: float32 scalar.
        scale: what the result is multiplied by before it is rounded, float32 scalar.
    """
    plan = _plan(rows.device, *rows.shape, len(weight), gelu=True) if rows.is_cuda else None
    if plan is None:  # written out: on the CPU, or for a shape that has no kernel
        product = (rows.float() @ weight.float().t()) * (row_scale * weight_scale) + bias.float()
        result = functional.gelu(product, approximate="tanh") * scale
        return result.clamp(-LARGEST, LARGEST).to(FP8)
    return plan(rows, weight, bias, row_scale, weight_scale, scale)


fp8_linear_gelu.register_fake(lambda rows, weight, *_: rows.new_empty(len(rows), len(weight)))


class _Plan:
    """One shape's kernel, and what cuBLASLt must be told to launch it.

    To cuBLASLt, whose matrices go by columns, the result is its transpose: weight times rows transposed.

    Args:
        device: where it runs, which is the current device.
        rows: N of `fp8_linear`.
        inputs: its `in`.
        outputs: its `out`.
        gelu: whether it is `fp8_linear_gelu`'s.
    """

    def __init__(self, device: torch.device, rows: int, inputs: int, outputs: int, *, gelu: bool) -> None:
        lt, nvmath = import_module("nvmath.bindings.cublasLt"), import_module("nvmath")
        compute = import_module("nvmath.bindings.cublas").ComputeType.COMPUTE_32F
        kinds = nvmath.CudaDataType
        e4m3, bf16 = kinds.CUDA_R_8F_E4M3, kinds.CUDA_R_16BF
        self._lt, self._attributes = lt, lt.MatmulDescAttribute
        self._handle = lt.create()
        self._desc = lt.matmul_desc_create(compute, kinds.CUDA_R_32F)
        self._rounds = gelu
        ending = lt.Epilogue.GELU_BIAS if gelu else lt.Epilogue.BIAS
        told = {"TRANSA": 1, "EPILOGUE": ending, "FAST_ACCUM": 1, "BIAS_DATA_TYPE": bf16}
        for name, value in told.items():
            self._tell(name, value)
        some = torch.ones(outputs, device=device, dtype=torch.bfloat16)  # the choice looks at how they lie
        self._point(some, some, some, some if gelu else None)
        self._layouts = [
            lt.matrix_layout_create(kind, height, width, height)
            for kind, height, width in (
                (e4m3, inputs, outputs),
                (e4m3, inputs, rows),
                (bf16, outputs, rows),
                (e4m3 if gelu else bf16, outputs, rows),
            )
        ]
        preference, found = lt.matmul_preference_create(), np.zeros(1, np.int32)
        self._kernel = np.zeros(1, lt.matmul_heuristic_result_dtype)
        try:  # with no workspace
            lt.matmul_algo_get_heuristic(
                self._handle,
                self._desc,
                *self._layouts,
                preference,
                1,
                self._kernel.ctypes.data,
                found.ctypes.data,
            )
        finally:
            lt.matmul_preference_destroy(preference)
        if not found[0]:
            raise RuntimeError(f"cuBLASLt has no such kernel for {rows}x{inputs} by {inputs}x{outputs}")
        self._one, self._zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        self._lock = Lock()  # each launch is first described

    def __call__(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        row_scale: Tensor,
        weight_scale: Tensor,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Launch it on the current stream; the arguments are `fp8_linear_gelu`'s."""
        rows = rows.contiguous()
        out = (rows if self._rounds else bias).new_empty(len(rows), len(weight))
        weight_layout, rows_layout, no_layout, out_layout = self._layouts
        with torch.cuda.device(rows.device), self._lock:
            self._point(bias, row_scale, weight_scale, scale)
            self._lt.matmul(
                self._handle,
                self._desc,
                self._one.ctypes.data,
                weight.data_ptr(),
                weight_layout,
                rows.data_ptr(),
                rows_layout,
                self._zero.ctypes.data,
                0,
                no_layout,
                out.data_ptr(),
                out_layout,
                self._kernel.ctypes.data,
                0,
                0,
                torch.cuda.current_stream(rows.device).cuda_stream,
            )
        return out

    def _point(self, bias: Tensor, row_scale: Tensor, weight_scale: Tensor, scale: Tensor | None) -> None:
        self._tell("BIAS_POINTER", bias.data_ptr())
        self._tell("A_SCALE_POINTER", weight_scale.data_ptr())
        self._tell("B_SCALE_POINTER", row_scale.data_ptr())
        if scale is not None:
            self._tell("D_SCALE_POINTER", scale.data_ptr())

    def _tell(self, name: str, value: Any) -> None:
        attribute = self._attributes[name]
        buffer = np.array([value], self._lt.get_matmul_desc_attribute_dtype(attribute))
        self._lt.matmul_desc_set_attribute(self._desc, attribute, buffer.ctypes.data, buffer.nbytes)


@cache  # never freed: a process has a few shapes
def _plan(device: torch.device, rows: int, inputs: int, outputs: int, *, gelu: bool) -> _Plan | None:
    """The kernel for a shape; None if nvmath is not installed, or there is none."""
    try:
        with torch.cuda.device(device):
            return _Plan(device, rows, inputs, outputs, gelu=gelu)
    except ImportError:
        return None
    except Exception as error:  # nvmath raises errors of its own
        reason = str(error).strip().split("\n")[0]
        message = f"8-bit products of {rows} rows do without cuBLASLt's own kernel ({reason})"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
