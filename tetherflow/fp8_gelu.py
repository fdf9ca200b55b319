"""A product of 8-bit matrices, its GELU and the rounding to 8 bits again, in one kernel of cuBLASLt.

PyTorch does not offer it: its own 8-bit product ends with the bias. So it is called through `nvmath-python`,
where that is installed.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FP8: Final = torch.float8_e4m3fn
LARGEST: Final = torch.finfo(FP8).max  # 448


def fuses(device: torch.device) -> bool:
    """Whether a device computes it in one kernel, found out by asking for one."""
    return device.type == "cuda" and _plan(device, 128, 128, 128) is not None


# An operator of its own, as a compiler cannot look into it.
@torch.library.custom_op("tetherflow::fp8_linear_gelu", mutates_args=())
def fp8_linear_gelu(
    rows: Tensor, weight: Tensor, bias: Tensor, row_scale: Tensor, weight_scale: Tensor, scale: Tensor
) -> Tensor:
    """GELU (tanh) of a linear layer on e4m3 rows `[N, in]`, times `scale`: e4m3 `[N, out]`.

    Args:
        rows: e4m3 `[N, in]`.
        weight: e4m3 `[out, in]`.
        bias: bfloat16 `[out]`.
        row_scale: what rows are to be multiplied by, float32 scalar.
        weight_scale: what the weight is to be multiplied by, float32 scalar.
        scale: what the result is multiplied by before it is rounded, float32 scalar.
    """
    plan = _plan(rows.device, *rows.shape, len(weight)) if rows.is_cuda else None
    if plan is None:  # written out: on the CPU, or for a shape that has no kernel
        product = (rows.float() @ weight.float().t()) * (row_scale * weight_scale) + bias.float()
        result = functional.gelu(product, approximate="tanh") * scale
        return result.clamp(-LARGEST, LARGEST).to(FP8)
    out = rows.new_empty(len(rows), len(weight))
    with torch.cuda.device(rows.device):
        plan(rows.contiguous(), weight, bias, row_scale, weight_scale, scale, out)
    return out


@fp8_linear_gelu.register_fake
def _(
    rows: Tensor, weight: Tensor, bias: Tensor, row_scale: Tensor, weight_scale: Tensor, scale: Tensor
) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0])


class _Plan:
    """One shape's kernel, and what cuBLASLt must be told to launch it.

    To cuBLASLt, whose matrices go by columns, the result is its transpose: weight times rows transposed.
    Not for several threads at once, as each launch is first described.

    Args:
        device: where it runs, which is the current device.
        rows: N of `fp8_linear_gelu`.
        inputs: its `in`.
        outputs: its `out`.
    """

    def __init__(self, device: torch.device, rows: int, inputs: int, outputs: int) -> None:
        lt, nvmath = import_module("nvmath.bindings.cublasLt"), import_module("nvmath")
        compute = import_module("nvmath.bindings.cublas").ComputeType.COMPUTE_32F
        kinds = nvmath.CudaDataType
        e4m3, bf16 = kinds.CUDA_R_8F_E4M3, kinds.CUDA_R_16BF
        self._lt, self._attributes = lt, lt.MatmulDescAttribute
        self._handle = lt.create()
        self._desc = lt.matmul_desc_create(compute, kinds.CUDA_R_32F)
        told = {"TRANSA": 1, "EPILOGUE": lt.Epilogue.GELU_BIAS, "FAST_ACCUM": 1, "BIAS_DATA_TYPE": bf16}
        for name, value in told.items():
            self._tell(name, value)
        some = torch.ones(outputs, device=device, dtype=torch.bfloat16)  # the choice looks at how they lie
        self._point(some, some, some, some)
        self._layouts = [
            lt.matrix_layout_create(kind, height, width, height)
            for kind, height, width in (
                (e4m3, inputs, outputs),
                (e4m3, inputs, rows),
                (bf16, outputs, rows),
                (e4m3, outputs, rows),
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

    def __call__(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        row_scale: Tensor,
        weight_scale: Tensor,
        scale: Tensor,
        out: Tensor,
    ) -> None:
        """Launch it on the current stream; the arguments are `fp8_linear_gelu`'s."""
        self._point(bias, row_scale, weight_scale, scale)
        weight_layout, rows_layout, no_layout, out_layout = self._layouts
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

    def _point(self, bias: Tensor, row_scale: Tensor, weight_scale: Tensor, scale: Tensor) -> None:
        self._tell("BIAS_POINTER", bias.data_ptr())
        self._tell("A_SCALE_POINTER", weight_scale.data_ptr())
        self._tell("B_SCALE_POINTER", row_scale.data_ptr())
        self._tell("D_SCALE_POINTER", scale.data_ptr())

    def _tell(self, name: str, value: Any) -> None:
        attribute = self._attributes[name]
        buffer = np.array([value], self._lt.get_matmul_desc_attribute_dtype(attribute))
        self._lt.matmul_desc_set_attribute(self._desc, attribute, buffer.ctypes.data, buffer.nbytes)


@cache  # never freed: a process has a few shapes
def _plan(device: torch.device, rows: int, inputs: int, outputs: int) -> _Plan | None:
    """The kernel for a shape; None if nvmath is not installed, or there is none."""
    try:
        with torch.cuda.device(device):
            return _Plan(device, rows, inputs, outputs)
    except ImportError:
        return None
    except Exception as error:  # nvmath raises errors of its own
        reason = str(error).strip().split("\n")[0]
        message = f"8-bit products do without the kernel that applies their GELU ({reason})"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
