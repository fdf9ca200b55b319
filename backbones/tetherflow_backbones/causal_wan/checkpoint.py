"""Loads a transformer's checkpoint, strictly by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tetherflow.errors import WeightsError
from tetherflow_backbones.causal_wan.architecture import Architecture
from tetherflow_backbones.causal_wan.transformer import CausalWanTransformer

PREFIX = "model."
"""What published checkpoints put before every parameter's name."""


def load_transformer(
    path: Path, arch: Architecture, *, device: torch.device, dtype: torch.dtype
) -> CausalWanTransformer:
    """A transformer with the parameters of a safetensors file, in inference mode.

    Args:
        path: safetensors file under the published names, with or without their `model.` prefix.
        arch: the sizes that the file must have.
        device: where the parameters go.
        dtype: their type.

    Raises:
        WeightsError: The file is missing, truncated or of another architecture.
    """
    state = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(path).items()}
    with torch.device("meta"):
        model = CausalWanTransformer(arch)
    check_parameters(path, model.state_dict(), state)
    # assign keeps each tensor as it is loaded: nothing is allocated twice.
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        WeightsError: It is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        raise WeightsError(f"weights are missing: {path} is not a file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({error}); it may be truncated: fetch or copy it again"
        ) from error


def check_parameters(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse a file whose names or shapes are not the expected ones, listing a few.

    Raises:
        WeightsError: They differ.
    """
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"{len(missing)} parameters are missing: {_few(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"{len(unexpected)} are unexpected: {_few(unexpected)}")
    shapes = [
        f"{name} is {list(found[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} have another shape: {_few(shapes)}")
    if problems:
        raise WeightsError(f"{path} holds the weights of another architecture: " + "; ".join(problems))


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 over files, hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _few(items: list[str], limit: int = 3) -> str:
    return ", ".join(items[:limit]) + (", …" if len(items) > limit else "")
