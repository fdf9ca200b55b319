"""Talks to the Hugging Face Hub, through huggingface_hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tetherflow.errors import OutputError, WeightsError
from tetherflow.weights.published import PublishedFile


class HubUnreachable(WeightsError):
    """The Hub does not answer, or does not have what is asked for."""


class Hub:
    """The Hub, at its usual address or at `$HF_ENDPOINT`.

    Raises:
        WeightsError: huggingface_hub is not installed.
    """

    def __init__(self) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.file_download
        except ImportError as error:
            raise WeightsError(
                "fetching needs huggingface_hub, which is not installed: pip install 'tetherflow[wan]'"
            ) from error
        self._library = huggingface_hub
        self._api = huggingface_hub.HfApi()

    def resolve(self, file: PublishedFile) -> PublishedFile:
        """Fill in what is not pinned: the commit, the size and the hash that the Hub has on record.

        Raises:
            HubUnreachable: The Hub does not answer, or has no such file.
            WeightsError: The Hub's record contradicts the pins.
        """
        with _reaching(file):
            revision = file.revision or self._api.model_info(file.repo).sha
            found = self._api.get_paths_info(file.repo, [file.path], revision=revision)
        if not found or not isinstance(found[0], self._library.hf_api.RepoFile):
            raise HubUnreachable(f"{file.repo} has no file {file.path} at revision {revision}")
        size, sha256 = found[0].size, found[0].lfs.sha256 if found[0].lfs else None
        for what, pinned, served in (("size", file.size, size), ("sha256", file.sha256, sha256)):
            if None not in (pinned, served) and pinned != served:
                raise WeightsError(
                    f"{file.name}: the Hub serves {what} {served} at revision {revision}, but {pinned} is "
                    "pinned; nothing is fetched. The file may have been tampered with, or the pin is wrong"
                )
        return PublishedFile(file.repo, file.path, revision, size, file.sha256 or sha256)

    def cached(self, file: PublishedFile) -> Path | None:
        """Where huggingface_hub has a file in its own cache, if it has."""
        found = self._library.try_to_load_from_cache(file.repo, file.path, revision=file.revision)
        return Path(found).resolve() if isinstance(found, str) else None

    def download(self, file: PublishedFile, folder: Path) -> Path:
        """Bring a file to its place in a folder of weights, going on where an earlier try was cut off.

        A file that huggingface_hub has in its own cache is linked or copied from there. Downloads are kept as
        `.partial` files until they are whole: huggingface_hub itself throws away what it has not completed.

        Args:
            file: the file, as `resolve` returned it.
            folder: the folder of weights.

        Raises:
            HubUnreachable: The Hub does not answer, or stopped answering.
            OutputError: The folder cannot be written.
        """
        place, partial, library = file.place(folder), file.partial(folder), self._library
        cached = self.cached(file)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if cached is not None:
                _link(cached, place)
                return place
            with partial.open("ab") as target:
                if file.size is not None and target.tell() > file.size:
                    target.truncate(0)
                with _reaching(file):
                    library.file_download.http_get(
                        library.hf_hub_url(file.repo, file.path, revision=file.revision),
                        target,
                        resume_size=target.tell(),
                        headers=library.utils.build_hf_headers(),
                        expected_size=file.size,
                    )
            partial.replace(place)
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror or error}") from error
        return place


def _link(source: Path, place: Path) -> None:
    """Give a file a second place, without a copy where both are on one disk."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


@contextmanager
def _reaching(file: PublishedFile) -> Iterator[None]:
    """Turn what may go wrong on the way to the Hub into one error."""
    # huggingface_hub changed its HTTP library between major versions; its own errors derive from either's.
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except (HTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise HubUnreachable(f"{file.name} cannot be fetched: {reason}") from error
