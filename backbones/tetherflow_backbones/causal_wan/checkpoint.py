"""Loads a transformer's checkpoint, strictly by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch

from tetherflow.errors import WeightsError
from tetherflow_backbones.causal_wan.architecture import Architecture
from tetherflow_backbones.causal_wan.lora import merge_lora
from tetherflow_backbones.causal_wan.transformer import CausalWanTransformer
from tetherflow_backbones.loading import assign, check_parameters
from tetherflow_backbones.recognise import describe
from tetherflow_backbones.tensor_files import Stored, open_tensors

Weights = Literal["auto", "ema", "raw"]
"""Which weights of a training run: their moving average where there is one, the average, or the last ones."""

PREFIXES: Final = ("model.", "module.")
"""What published checkpoints and DistributedDataParallel put before every parameter's name, in any order."""

WRAPPERS: Final = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What training frameworks leave within parameters' names."""

_KEYS: Final[dict[Weights, tuple[str, ...]]] = {
    "auto": ("generator_ema", "generator"),
    "ema": ("generator_ema",),
    "raw": ("generator",),
}


def load_transformer(
    path: Path,
    arch: Architecture,
    *,
    device: torch.device,
    dtype: torch.dtype,
    weights: Weights = "auto",
    lora: Path | None = None,
    lora_alpha: float | None = None,
) -> CausalWanTransformer:
    """A transformer with the parameters of a checkpoint, in inference mode.

    Tensors go from the file to the device one by one; the host never holds the model.

    Args:
        path: what `open_tensors` opens: under the published names, with or without their prefixes and
            wrappers, at the top or as `generator_ema` or `generator`.
        arch: the sizes that the file must have.
        device: where the parameters go.
        dtype: their type.
        weights: which weights, of a file that holds several.
        lora: an adapter to merge in.
        lora_alpha: its scale α; None for its rank.

    Raises:
        WeightsError: A file is missing, truncated or of another architecture.
    """
    stored = plain_names(path, open_tensors(path, lambda content: _state(path, content, weights)))
    with torch.device("meta"):
        model = CausalWanTransformer(arch)
    check_parameters(path, model, stored, f"Wan's transformer with {describe(arch)}")
    if lora is not None:
        stored = merge_lora(stored, lora, lora_alpha, device)
    assign(model, stored, device, dtype)
    return model.eval().requires_grad_(False)


def plain_names(path: Path, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors under the names that Wan2.1 gives them, without what training puts around.

    Raises:
        WeightsError: Two of them have the same name then.
    """
    plain: dict[str, Stored] = {}
    for name, tensor in stored.items():
        short = name
        for wrapper in WRAPPERS:
            short = short.replace(wrapper, "")
        while short.startswith(PREFIXES):
            short = short.partition(".")[2]
        if short in plain:
            raise WeightsError(f"{path} holds {short} twice, once as {name}")
        plain[short] = tensor
    return plain


def _state(path: Path, content: Mapping[str, Any], weights: Weights) -> Any:
    """The state dictionary of a training run's checkpoint; the content itself if it is one already."""
    for key in _KEYS[weights]:
        if key in content:
            return content[key]
    if offered := [key for key in _KEYS["auto"] if key in content]:
        raise WeightsError(
            f"{path} holds {' and '.join(offered)}, not weights '{weights}'; use weights: auto"
        )
    return content
