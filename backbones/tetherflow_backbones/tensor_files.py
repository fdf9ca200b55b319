"""Tensors in files, read one by one when they are needed: safetensors, sharded or not, and PyTorch's own.

Files are mapped into memory, not read, so that no second copy of a model is ever in it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tetherflow.errors import WeightsError

INDEX: Final = ".safetensors.index.json"
"""How the name of a sharded checkpoint's index ends."""


@attrs.frozen
class Stored:
    """A tensor in a file.

    Attributes:
        shape: its shape.
        read: returns it, on the CPU, backed by the file.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def open_tensors(
    path: Path, choose: Callable[[Mapping[str, Any]], Any] = lambda content: content
) -> dict[str, Stored]:
    """Open a checkpoint without reading it.

    Args:
        path: a file (`.safetensors`, `.pt`, `.pth`), a sharded checkpoint's index, or a folder with one.
        choose: picks the state dictionary out of a PyTorch file's content; the content itself by default.

    Returns:
        The tensors by name.

    Raises:
        WeightsError: It is missing, truncated, or of another kind.
    """
    found: dict[str, Stored] = {}
    for file in files_of(path):
        tensors = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file, choose)
        if twice := sorted(found.keys() & tensors.keys()):
            raise WeightsError(f"{path} holds {twice[0]} twice, the second time in {file.name}")
        found |= tensors
    return found


def files_of(path: Path) -> list[Path]:
    """The files that make up a checkpoint, in order.

    Raises:
        WeightsError: Some are missing, or a folder does not say which they are.
    """
    if path.is_dir():
        candidates = sorted(path.glob(f"*{INDEX}")) or sorted(
            file for file in path.iterdir() if file.suffix in (".safetensors", ".pt", ".pth")
        )
        if len(candidates) != 1:
            names = ", ".join(file.name for file in candidates) or "none"
            raise WeightsError(f"{path} should hold one checkpoint, found: {names}; name the file")
        return files_of(candidates[0])
    if not path.is_file():
        raise WeightsError(f"weights are missing: {path} is not a file")
    if not path.name.endswith(".json"):
        return [path]
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is no index of a sharded checkpoint: {error!r}") from error
    files = [path.parent / name for name in shards]
    if missing := [file.name for file in files if not file.is_file()]:
        raise WeightsError(f"{path.parent} lacks {len(missing)} of {len(files)} shards: {few(missing)}")
    return files


def few(items: Sequence[str], limit: int = 3) -> str:
    """The first of some words, for an error."""
    return ", ".join(items[:limit]) + (", …" if len(items) > limit else "")


def _safetensors(path: Path) -> dict[str, Stored]:
    try:
        file = safe_open(path, framework="pt", device="cpu")
        return {
            name: Stored(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
            for name in file.keys()  # noqa: SIM118 - it is no mapping
        }
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({error}); it may be truncated: fetch or copy it again"
        ) from error


def _pickled(path: Path, choose: Callable[[Mapping[str, Any]], Any]) -> dict[str, Stored]:
    """Tensors of a PyTorch file; nothing in it is executed."""
    try:
        # Files older than PyTorch 1.6 are no archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what a damaged file makes of torch's reader, an IndexError even
        raise WeightsError(
            f"{path} cannot be read as a PyTorch file of tensors ({_reason(error)}); it may be truncated, or "
            "hold more than weights, which is never loaded: fetch or copy it again, or convert it to "
            "safetensors"
        ) from error
    state = choose(content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(
            f"{path} holds no dictionary of tensors; found: {_seen(state)}. "
            "Save the tensors alone, by their names"
        )
    return {
        str(name): Stored(tuple(tensor.shape), partial(_itself, tensor)) for name, tensor in state.items()
    }


def _reason(error: Exception) -> str:
    """Why a PyTorch file cannot be read, without PyTorch's advice to read it unsafely."""
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it refers to {refused[1]}"
    if not isinstance(error, (RuntimeError, OSError, ValueError)):
        return "its content is no pickle of tensors"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _seen(state: object) -> str:
    """What stands where a dictionary of tensors should."""
    if not isinstance(state, Mapping):
        return type(state).__name__
    others = [
        f"{key} ({type(value).__name__})" for key, value in state.items() if not isinstance(value, Tensor)
    ]
    return few(others) or "an empty one"


def _itself(tensor: Tensor) -> Tensor:
    return tensor
