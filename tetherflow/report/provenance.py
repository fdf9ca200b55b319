"""Where, when and how figures were measured."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import attrs
import torch

import tetherflow
from tetherflow.rollout.devices import device_name


@attrs.frozen
class Provenance:
    """What a reader needs to judge figures, or to measure them again.

    Attributes:
        machine: processor, cores and GPU, in words; never the machine's name.
        date: UTC, ISO 8601 to the minute.
        versions: of the packages that decide the figures, by distribution name.
        command: what was typed.
    """

    machine: str
    date: str
    versions: dict[str, str]
    command: str

    @classmethod
    def here(cls, command: Sequence[str], *, device: torch.device | None = None) -> Provenance:
        """State this machine and this moment.

        Args:
            command: the command line, word by word.
            device: the device that generated the videos; a GPU is named only if it is one.
        """
        words = [f"{_processor()}, {os.cpu_count()} cores"]
        if device is not None and device.type == "cuda":
            words.append(device_name(device))
        return cls(
            machine=", ".join(words),
            date=datetime.now(UTC).isoformat(timespec="minutes").replace("+00:00", "Z"),
            versions={
                "tetherflow": tetherflow.__version__,
                "python": platform.python_version(),
                **_versions(),
            },
            command=shlex.join(command),
        )


def _versions() -> dict[str, str]:
    """Versions of the packages that decide what is generated, of those that are installed."""
    found = {}
    for name in ("torch", "lightning", "diffusers", "flash-attn-4", "nvmath-python"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    """The processor's model, or at least its architecture."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
