"""A file of published weights, pinned as far as it is known."""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class PublishedFile:
    """A file on the Hugging Face Hub that a backbone runs with.

    Attributes:
        repo: the repository, `owner/name`.
        path: the file's path in it.
        revision: commit that is fetched; None where none is pinned: the newest, which the lock names then.
        size: bytes; None if not known before the Hub is asked.
        sha256: hash of the content, hexadecimal; None if not known before the Hub is asked.
    """

    repo: str
    path: str
    revision: str | None = None
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The repository and the path in it, which is also its place in a folder of weights."""
        return f"{self.repo}/{self.path}"

    def place(self, folder: Path) -> Path:
        """Where it belongs in a folder of weights."""
        return folder / self.repo / self.path

    def partial(self, folder: Path) -> Path:
        """Where a download of it is kept until it is whole; another commit's is another file."""
        place = self.place(folder)
        return place.with_name(f".{place.name}.{self.revision}.partial")
