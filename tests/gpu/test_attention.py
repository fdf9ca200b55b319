"""Attention kernels on a GPU, each against torch's plain arithmetic; run with `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from tetherflow.cache import attention_for
from tetherflow.cache.attention import AttentionName
from tetherflow.errors import KernelError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")


@pytest.mark.parametrize("name", ["flash-attn-4", "cudnn", "flash", "plain"])
@pytest.mark.parametrize(("batch", "held"), [(1, 3), (1, 6), (2, 5)])
@torch.inference_mode()
def test_kernel_agrees_with_the_math_one(name: AttentionName, batch: int, held: int) -> None:
    """On a prefix of a cache's slots, as the engine reads it, of sizes that are no power of two."""
    try:
        attention = attention_for(name, CUDA, torch.bfloat16)
    except KernelError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    slots = torch.randn(2, batch, 7, 390, 12, 128, device=CUDA, dtype=torch.bfloat16)
    key, value = (x[:, :held].flatten(1, 2) for x in slots)
    query = torch.randn(batch, 3 * 390, 12, 128, device=CUDA, dtype=torch.bfloat16)
    reference = attention_for("math", CUDA, torch.float32)
    expected = reference(*(x.float() for x in (query, key, value)))
    error = (attention(query, key, value).float() - expected).norm() / expected.norm()
    assert error < 0.01


def test_auto_takes_the_fastest_that_is_installed() -> None:
    installed = []
    for name in ("flash-attn-4", "cudnn", "flash", "plain"):
        try:
            installed.append(attention_for(name, CUDA, torch.bfloat16).name)
        except KernelError:
            continue
    assert attention_for("auto", CUDA, torch.bfloat16).name == installed[0]
    assert attention_for("auto", CUDA, torch.float32).name in ("cudnn", "flash", "plain")


@pytest.mark.parametrize("name", ["flash-attn-4", "cudnn"])
@torch.inference_mode()
def test_call_that_is_cut_agrees_with_the_math_one(name: AttentionName) -> None:
    """A full cache of the published model, whose last wave of blocks shares its keys out."""
    try:
        attention = attention_for(name, CUDA, torch.bfloat16)
    except KernelError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    slots = torch.randn(2, 1, 24, 1560, 12, 128, device=CUDA, dtype=torch.bfloat16)
    key, value = (x[:, :21].flatten(1, 2) for x in slots)
    query = 3 * torch.randn(1, 3 * 1560, 12, 128, device=CUDA, dtype=torch.bfloat16)
    found = attention(query, key, value)
    reference = attention_for("math", CUDA, torch.float32)
    for rows in (slice(0, 256), slice(4096, 4352), slice(4424, 4680)):
        expected = reference(query[:, rows].float(), key.float(), value.float())
        error = (found[:, rows].float() - expected).norm() / expected.norm()
        assert error < 0.01


@pytest.mark.parametrize("name", ["flash-attn-4", "cudnn", "flash"])
@torch.inference_mode()
def test_kernel_of_half_precision_refuses_float32(name: AttentionName) -> None:
    with pytest.raises(KernelError):
        attention_for(name, CUDA, torch.float32)
