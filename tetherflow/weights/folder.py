"""The folder of fetched weights, and the lock that says what is in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs

from tetherflow.errors import WeightsError
from tetherflow.files import write_whole

LOCK: Final = "weights.lock.json"
"""The lock's name, at the top of a folder of weights."""


def weights_folder() -> Path:
    """Where weights are fetched to: `$TETHERFLOW_WEIGHTS`, or `tetherflow/weights` in the user's cache."""
    if chosen := os.environ.get("TETHERFLOW_WEIGHTS"):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tetherflow" / "weights"


@attrs.frozen
class Locked:
    """What was found in one file.

    Attributes:
        revision: commit from which it was fetched; None if it was put there by hand.
        size: bytes.
        sha256: hash of the content, computed here.
        modified_ns: the file's time of change when it was hashed; another one means that it may have changed.
        checked: whether the hash was compared with a published one.
    """

    revision: str | None
    size: int
    sha256: str
    modified_ns: int
    checked: bool

    def describes(self, path: Path) -> bool:
        """Whether the file is as it was when it was hashed, as far as its size and time of change tell."""
        found = path.stat()
        return (found.st_size, found.st_mtime_ns) == (self.size, self.modified_ns)


def read_lock(folder: Path) -> dict[str, Locked]:
    """What is known of the files of a folder of weights, by their path in it; empty without a lock.

    Raises:
        WeightsError: The lock is there but cannot be understood.
    """
    try:
        text = (folder / LOCK).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise WeightsError(f"cannot read {folder / LOCK}: {error.strerror or error}") from error
    try:
        return {name: Locked(**entry) for name, entry in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{folder / LOCK} is no lock of weights ({error}); delete it and run `tetherflow fetch` again"
        ) from error


def write_lock(folder: Path, entries: dict[str, Locked]) -> None:
    """Add to a folder's lock; a reader sees either the old one or the new one.

    Raises:
        OutputError: It cannot be written.
    """
    content = {name: attrs.asdict(entry) for name, entry in sorted((read_lock(folder) | entries).items())}
    write_whole(folder / LOCK, json.dumps(content, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """Hash of a file, hexadecimal.

    Hashing gigabytes takes a while, so a file that a lock above it describes is not read again.

    Raises:
        WeightsError: It cannot be read.
    """
    try:
        for folder in path.absolute().parents:
            if (folder / LOCK).is_file():
                entry = read_lock(folder).get(path.absolute().relative_to(folder).as_posix())
                if entry is not None and entry.describes(path):
                    return entry.sha256
        return hash_file(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def digest(paths: Iterable[Path]) -> str:
    """One hash over the hashes of several files, hexadecimal; their order counts.

    Raises:
        WeightsError: One cannot be read.
    """
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(sha256_of(path)))
    return total.hexdigest()


def hash_file(path: Path) -> str:
    """Hash of a file's content, hexadecimal, by reading it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
