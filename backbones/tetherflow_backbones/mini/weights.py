"""The miniature's files: safetensors in half precision beside a `config.json`; nothing in them is code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tetherflow.errors import WeightsError
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer
from tetherflow_backbones.mini.config import Sizes
from tetherflow_backbones.mini.text import WordEncoder

PACKAGED = Path(__file__).parent / "weights"
FILES = ("transformer.safetensors", "text.safetensors", "vae.safetensors")
PREFIX = "model."
"""What Self-Forcing's checkpoints put before the transformer's parameter names."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> None:
    """Write tensors as safetensors of the given type, whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file({name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}, partial)
    partial.chmod(0o644)  # safetensors makes files that only their owner may read
    partial.replace(path)


def load_module(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Load a file into a module of the same architecture, keeping the module's types.

    Raises:
        WeightsError: The file is missing, is truncated, or holds other names or shapes.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing: reinstall, or name the folder that holds it")
    try:
        found = {name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read, it may be truncated: {error}") from error
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    missing = sorted(wanted.keys() - found.keys())
    surplus = sorted(found.keys() - wanted.keys())
    if missing or surplus:
        raise WeightsError(
            f"{path} is of another architecture: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(surplus)} unknown {surplus[:3]}"
        )
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise WeightsError(
                f"{path} is of another architecture: {name} is {list(found[name].shape)}, not {list(shape)}"
            )
    module.load_state_dict(found)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: It is missing or is none.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing: reinstall, or name the folder that holds it") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no JSON object")
    return content


def save_vae(folder: Path, network: AutoencoderKLWan, sizes: Sizes) -> None:
    """Write an autoencoder and, as `vae.json`, its arguments with the latents' statistics."""
    config = {**sizes.vae, **{key: list(network.config[key]) for key in ("latents_mean", "latents_std")}}
    write_tensors(folder / "vae.safetensors", network.state_dict())
    (folder / "vae.json").write_text(json.dumps(config, indent=2) + "\n")


def load_vae(folder: Path, config: Mapping[str, Any] | None = None) -> AutoencoderKLWan:
    """An autoencoder in float32, of the given arguments or those of the folder's `vae.json`."""
    try:
        network = AutoencoderKLWan(**(read_json(folder / "vae.json") if config is None else config))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{folder}: the autoencoder's configuration is not understood: {error}") from error
    load_module(network, folder / "vae.safetensors")
    return network.eval().requires_grad_(False)


def sha256(path: Path) -> str:
    """Hash of a file, hexadecimal.

    Raises:
        WeightsError: It is missing.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} is missing: reinstall, or name the folder that holds it") from error


@attrs.frozen
class Weights:
    """A loaded miniature, in float32.

    Attributes:
        transformer: The few-step model.
        words: The prompts' encoder.
        vae: The autoencoder.
        frame: Height and width of a video frame, pixels.
        config: The folder's `config.json`.
    """

    transformer: CausalWanTransformer
    words: WordEncoder
    vae: AutoencoderKLWan
    frame: int
    config: dict[str, Any]


def load(folder: Path = PACKAGED) -> Weights:
    """Load a miniature from a folder that `export` wrote.

    Raises:
        WeightsError: A file is missing, truncated, or of another architecture.
    """
    config = read_json(folder / "config.json")
    try:
        arch = Architecture(**config["transformer"])
        transformer, words = CausalWanTransformer(arch), WordEncoder(arch.text_dim, arch.text_len)
        vae_config, frame = dict(config["vae"]), int(config["frame"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / 'config.json'} does not describe a miniature: {error!r}") from error
    load_module(transformer, folder / "transformer.safetensors", PREFIX)
    load_module(words, folder / "text.safetensors")
    vae = load_vae(folder, vae_config)
    for module in (transformer, words):
        module.eval().requires_grad_(False)
    return Weights(transformer, words, vae, frame, config)
