"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from tetherflow.errors import OutputError


def write_whole(path: Path, contents: str | bytes) -> None:
    """Write a file so that a reader sees either nothing new or all of it.

    Args:
        path: the file; an older one is replaced, and its folder is made if it is not there.
        contents: what it is to hold; text is encoded in UTF-8.

    Raises:
        OutputError: It cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(contents if isinstance(contents, bytes) else contents.encode("utf-8"))
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
