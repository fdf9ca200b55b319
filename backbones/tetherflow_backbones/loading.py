"""Gives models their parameters, strictly by name and without a second copy in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tetherflow.errors import WeightsError
from tetherflow_backbones.recognise import looks_like
from tetherflow_backbones.tensor_files import Stored, few


def check_parameters(path: Path, model: nn.Module, found: Mapping[str, Stored], wanted: str) -> None:
    """Refuse a checkpoint whose names or shapes are not a model's, listing a few.

    Args:
        path: the checkpoint, for the error.
        model: the model.
        found: what the checkpoint holds.
        wanted: what the model is, in words.

    Raises:
        WeightsError: They differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        what = "1 parameter is" if len(missing) == 1 else f"{len(missing)} parameters are"
        problems.append(f"{what} missing: {few(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"{len(unexpected)} are unexpected: {few(unexpected)}")
    shapes = [
        f"{name} is {list(found[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} have another shape: {few(shapes)}")
    if problems:
        seen, listed = looks_like({name: tensor.shape for name, tensor in found.items()}), "; ".join(problems)
        if shapes or seen != looks_like(expected):
            raise WeightsError(
                f"{path} holds the weights of another architecture: {listed}. "
                f"It looks like {seen}; wanted is {wanted}"
            )
        fault = "does not fit" if unexpected else "is incomplete"
        raise WeightsError(f"{path} {fault}: {listed}. Otherwise it looks like {wanted}, as it should")


def assign(model: nn.Module, stored: Mapping[str, Stored], device: torch.device, dtype: torch.dtype) -> None:
    """Give a model on the meta device its parameters, each read, moved and converted by itself."""
    state: dict[str, Tensor] = {name: tensor.read().to(device, dtype) for name, tensor in stored.items()}
    model.load_state_dict(state, assign=True)
