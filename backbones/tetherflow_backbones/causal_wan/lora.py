"""Low-rank adapters (LoRA, arXiv 2106.09685), merged into the weights that they adapt."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tetherflow.errors import WeightsError
from tetherflow_backbones.tensor_files import Stored, open_tensors

PREFIX: Final = "base_model.model."
"""What PEFT puts before the name of an adapted module."""


def merge_lora(
    weights: Mapping[str, Stored], path: Path, alpha: float | None, device: torch.device
) -> dict[str, Stored]:
    """Weights with an adapter merged in, W + (α / rank) · B A, computed in float32 as each is read.

    Args:
        weights: the weights by name.
        path: the adapter, under PEFT's names; LongLive keeps it in `generator_lora`.
        alpha: its scale α; None for the rank, which merges B A as it is.
        device: where the products are computed.

    Raises:
        WeightsError: It cannot be read, is incomplete, or adapts what is not there.
    """
    halves = _halves(path)
    merged = dict(weights)
    for name, (down, up) in halves.items():
        if name not in weights:
            raise WeightsError(f"{path} adapts {name}, which the transformer does not have")
        wanted = (up.shape[0], down.shape[1])
        if weights[name].shape != wanted or up.shape[1] != down.shape[0]:
            raise WeightsError(f"{path} adapts {name} as {list(wanted)}; it is {list(weights[name].shape)}")
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        merged[name] = Stored(wanted, partial(_merged, weights[name], down, up, scale, device))
    return merged


def _halves(path: Path) -> dict[str, tuple[Stored, Stored]]:
    """The two factors A and B of each adapted weight."""
    found: dict[str, dict[str, Stored]] = {}
    for name, stored in open_tensors(path, _generator).items():
        plain = name.removeprefix(PREFIX).replace(".default.", ".")
        module, _, factor = plain.removesuffix(".weight").rpartition(".")
        if factor not in ("lora_A", "lora_B"):
            raise WeightsError(f"{path} is no LoRA under PEFT's names: it holds {name}")
        found.setdefault(f"{module}.weight", {})[factor] = stored
    for name, pair in found.items():
        if len(pair) != 2:
            raise WeightsError(f"{path} is incomplete: of {name} it holds {', '.join(pair)} alone")
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in found.items()}


def _generator(content: Mapping[str, Any]) -> Any:
    return content.get("generator_lora", content)


def _merged(base: Stored, down: Stored, up: Stored, scale: float, device: torch.device) -> Tensor:
    weight, a, b = (stored.read().to(device, torch.float32) for stored in (base, down, up))
    return torch.addmm(weight, b, a, alpha=scale)
