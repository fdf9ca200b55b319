"""Attention kernels: each against the softmax written out, and what is said when one is not there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cache.drive import Sizes, assert_close
from tests.cache.plugins import tethercache
from tetherflow import Layout
from tetherflow.cache import CacheEngine, attention_for
from tetherflow.cache.attention import AttentionName
from tetherflow.errors import KernelError
from tetherflow.testing.script import run, write_script

CPU = torch.device("cpu")


def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as the textbook has it, in float64."""
    query, key, value = (x.double().transpose(1, 2) for x in (query, key, value))
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("name", ["auto", "plain", "flash", "math"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_every_kernel_of_the_cpu_is_softmax_attention(
    name: AttentionName, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    buffer = torch.randn(2, 3, 9, 5, 2, 24, generator=generator).to(dtype)
    query, key, value = buffer[0].flatten(1, 2)[:, :7], *(x[:, :6].flatten(1, 2) for x in buffer)
    found = attention_for(name, CPU, dtype, 24)(query, key, value)
    assert found.dtype == dtype
    assert_close([found.double()], [softmax(query, key, value)], tolerance)


def test_auto_on_the_cpu_is_torchs_own_choice() -> None:
    assert attention_for("auto", CPU, torch.float32).name == "plain"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flash-attn-4", r"attention 'flash-attn-4' is not installed \(No module named 'flash_attn'\)"),
        ("cudnn", r"attention 'cudnn' does not run on cpu with float32 \(RuntimeError: .*backend"),
    ],
)
def test_kernel_that_is_not_there_is_told(name: AttentionName, message: str) -> None:
    with pytest.raises(KernelError, match=message + ".*runtime.attention: auto takes the fastest that does"):
        attention_for(name, CPU, torch.float32)


def test_engine_attends_by_the_kernel_it_is_given() -> None:
    sizes = Sizes()
    script = write_script(sizes, [3] * 6)

    def engine(name: AttentionName) -> CacheEngine:
        return CacheEngine(
            sizes.shape,
            Layout(1, 3, 4),
            tethercache(),
            sizes.rotary,
            attention=attention_for(name, CPU, torch.float32, sizes.head_dim),
        )

    assert_close(run(engine("math"), script).attended, run(engine("plain"), script).attended, 1e-5)
