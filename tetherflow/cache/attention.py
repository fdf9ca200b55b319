"""Dense attention over a cache's view, by the fastest kernel that is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tetherflow.cache.fusing import Fuse, step_by_step
from tetherflow.cache.waves import TILE, WIDE_TILE, WithLogSums, in_whole_waves, in_wide_waves
from tetherflow.errors import KernelError

AttentionName = Literal["auto", "flash-attn-4", "cudnn", "flash", "plain", "math"]
"""By name: flash-attn-4, torch's cuDNN and flash ones, its own choice (plain), its reference (math)."""

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
Attend = Callable[..., Any]
"""Attention of any kind: a function of queries `[B, Lq, H, D]`, keys `[B, Lk, H, D]`, and maybe more."""

_WIDE: Final = {"tile_mn": (WIDE_TILE, TILE), "num_threads": 512, "mma_pv_is_rs": False}
"""Of flash-attn-4: blocks of more queries, which read keys and values less often and so spare power."""

_FASTEST_FIRST: Final[tuple[AttentionName, ...]] = ("flash-attn-4", "cudnn", "flash", "plain")


def _unwatched(attend: Attend) -> Attend:
    return attend


@attrs.frozen
class Attention:
    """Dense softmax attention without a mask.

    Attributes:
        name: the kernel's name.
        kernel: computes it.
        watch: makes of the kernel, and of any that a backbone has in its place, one that is measured.
    """

    name: AttentionName
    kernel: Kernel = attrs.field(repr=False)
    watch: Callable[[Attend], Attend] = attrs.field(default=_unwatched, repr=False)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend.

        Args:
            query: `[B, Lq, H, D]`.
            key: `[B, Lk, H, D]`.
            value: `[B, Lk, H, D]`.

        Returns:
            `[B, Lq, H, D]`.
        """
        out: Tensor = self.watch(self.kernel)(query, key, value)
        return out


def attention_for(
    name: AttentionName,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int = 128,
    fuse: Fuse = step_by_step,
) -> Attention:
    """An attention kernel that works on a device, found out by running it once.

    Args:
        name: which; `auto` takes the fastest that works.
        device: where it is to run.
        dtype: type of queries, keys and values.
        head_dim: width of a head.
        fuse: makes one kernel of what joins the parts of a call that is cut (`cache.waves`).

    Raises:
        KernelError: The one that was asked for is not installed, or does not run there.
    """
    if name == "auto":
        # On the CPU there is nothing to choose: torch picks its own flash kernel.
        names = _FASTEST_FIRST if device.type == "cuda" else _FASTEST_FIRST[-1:]
        working = (_working(each, device, dtype, head_dim, fuse) for each in names)
        return next(found for found in working if found is not None)
    return _proven(name, device, dtype, head_dim, fuse)


def _working(
    name: AttentionName, device: torch.device, dtype: torch.dtype, head_dim: int, fuse: Fuse
) -> Attention | None:
    try:
        return _proven(name, device, dtype, head_dim, fuse)
    except KernelError:
        return None


def _proven(
    name: AttentionName, device: torch.device, dtype: torch.dtype, head_dim: int, fuse: Fuse
) -> Attention:
    what = f"attention '{name}' does not run on {device} with {str(dtype).removeprefix('torch.')}"
    remedy = "runtime.attention: auto takes the fastest that does"
    tokens = torch.zeros(1, 128, 1, head_dim, device=device, dtype=dtype)
    try:
        attention = Attention(name, _kernel(name, device, dtype, head_dim, fuse))
        # Torch explains in warnings why a kernel does not suit; one of its errors is enough.
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            attention(tokens, tokens, tokens)
    except ImportError as error:
        raise KernelError(f"attention '{name}' is not installed ({error}); {remedy}") from error
    except Exception as error:  # a kernel that does not suit may say so in any way
        reason = str(error).strip().split("\n")[0]
        raise KernelError(f"{what} ({type(error).__name__}: {reason}); {remedy}") from error
    return attention


def _kernel(
    name: AttentionName, device: torch.device, dtype: torch.dtype, head_dim: int, fuse: Fuse
) -> Kernel:
    if name == "flash-attn-4":
        return _cut(_flash_attn_4(device, dtype, head_dim), device, head_dim, fuse)
    if name == "cudnn" and _hopper(device) and dtype.itemsize == 2:  # of other types it makes nonsense
        return _cut(_cudnn, device, head_dim, fuse)
    if name == "plain":
        return _scaled_dot_product
    backend = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "math": SDPBackend.MATH,
    }[name]

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return _scaled_dot_product(query, key, value)

    return kernel


def _scaled_dot_product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return out.transpose(1, 2)


def _cudnn(query: Tensor, key: Tensor, value: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `scaled_dot_product_attention` calls, which keeps the logarithms of sums to itself."""
    found, log_sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, True
    )
    log_sums = log_sums.reshape(found.shape[:3])
    found = found.transpose(1, 2)
    return (found if out is None else out.copy_(found)), log_sums


def _flash_attn_4(device: torch.device, dtype: torch.dtype, head_dim: int) -> WithLogSums:
    # The package of the same name that serves older GPUs has no `cute`, and is no substitute.
    flash_attn_func = import_module("flash_attn.cute").flash_attn_func
    writes = _writing_flash_attn_4(device, dtype, head_dim)
    wide = _hopper(device) and head_dim == TILE  # where calls are cut (`_cut`)
    widely = _writing_flash_attn_4(device, dtype, head_dim, **_WIDE) if wide else None
    at_once = torch.cuda.get_device_properties(device).multi_processor_count

    def kernel(query: Tensor, key: Tensor, value: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if out is not None and writes is not None:
            write = widely if widely is not None and in_wide_waves(query.shape, at_once) else writes
            return out, write(query, key, value, out=out, return_lse=True)[1]
        found, log_sums = flash_attn_func(query, key, value, return_lse=True)
        return (found if out is None else out.copy_(found)), log_sums

    return kernel


def _writing_flash_attn_4(device: torch.device, dtype: torch.dtype, head_dim: int, **tiles: Any) -> Any:
    """What flash-attn-4's function calls, which can write where it is told to; None if it is so no more.

    Args:
        device: where it is to run.
        dtype: type of queries, keys and values.
        head_dim: width of a head.
        tiles: how it is to cut its work, unless as it does by itself.
    """
    generator = torch.Generator(device).manual_seed(0)
    size = (3, 1, WIDE_TILE, 1, head_dim)
    query, key, value = torch.randn(size, generator=generator, device=device, dtype=dtype)
    out = torch.zeros_like(query)
    try:
        inner = partial(import_module("flash_attn.cute.interface")._flash_attn_fwd, **tiles)
        inner(query, key, value, out=out, return_lse=True)
    except Exception:  # it is not meant for others, and may be any other way
        return None
    return inner if torch.allclose(out, _scaled_dot_product(query, key, value), atol=0.02) else None


def _cut(kernel: WithLogSums, device: torch.device, head_dim: int, fuse: Fuse) -> Kernel:
    """A kernel in whole waves, on the GPUs on which its blocks are known to be of TILE queries, one an SM."""
    if _hopper(device) and head_dim == TILE:
        return in_whole_waves(kernel, torch.cuda.get_device_properties(device).multi_processor_count, fuse)
    return lambda query, key, value: kernel(query, key, value)[0]


def _hopper(device: torch.device) -> bool:
    """Whether a device is an H100, an H200 or another of their kind."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


PLAIN: Final = Attention("plain", _scaled_dot_product)
"""Torch's own choice of kernel, which runs anywhere."""
