"""Fetches published weights into a folder, or checks those that are there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from tetherflow.errors import OutputError, WeightsError
from tetherflow.weights.folder import Locked, hash_file, read_lock, write_lock
from tetherflow.weights.hub import Hub, HubUnreachable
from tetherflow.weights.published import PublishedFile


@attrs.frozen
class Plan:
    """What is to be done.

    Attributes:
        folder: the folder of weights.
        present: files that are there, to be checked only.
        missing: files to download, with the commit, size and hash that the Hub has on record.
        cached: those of them that huggingface_hub has in its own cache, from where they are linked.
    """

    folder: Path
    present: tuple[PublishedFile, ...]
    missing: tuple[PublishedFile, ...]
    cached: tuple[PublishedFile, ...] = ()

    @property
    def download_bytes(self) -> int:
        """How much is to be downloaded still."""
        return sum((file.size or 0) - _begun(file, self.folder) for file in self._served)

    @property
    def begun_bytes(self) -> int:
        """How much of the missing files earlier downloads, which were cut off, left to go on from."""
        return sum(_begun(file, self.folder) for file in self._served)

    @property
    def cached_bytes(self) -> int:
        """How much of the missing files huggingface_hub has in its own cache."""
        return sum(file.size or 0 for file in self.cached)

    @property
    def free_bytes(self) -> int:
        """Free space where the folder is, or will be."""
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return shutil.disk_usage(existing).free

    @property
    def _served(self) -> tuple[PublishedFile, ...]:
        """What the Hub is to send, some of it or all."""
        return tuple(file for file in self.missing if file not in self.cached)


@attrs.frozen
class Fetched:
    """A file that is in place.

    Attributes:
        file: which one.
        path: where it lies.
        size: bytes.
        checked: whether its hash could be compared with a published one.
    """

    file: PublishedFile
    path: Path
    size: int
    checked: bool


def plan(files: Sequence[PublishedFile], folder: Path, offline: bool = False) -> Plan:
    """Find out what has to be downloaded; asks the Hub only if something has to.

    Args:
        files: what is wanted.
        folder: the folder of weights; need not exist.
        offline: whether to ask nobody.

    Raises:
        WeightsError: Files are missing and cannot be fetched; the message lists them and where to put them.
    """
    present = tuple(file for file in files if file.place(folder).is_file())
    missing = tuple(file for file in files if not file.place(folder).is_file())
    if not missing:
        return Plan(folder, present, ())
    wrong = [problem for file in present if (problem := _wrong_size(file, folder)) is not None]
    if offline:
        reason = "they are not there, and nothing may be downloaded"
        raise WeightsError("\n".join([_by_hand(missing, folder, reason), *wrong]))
    try:
        hub = Hub()
        resolved = tuple(hub.resolve(file) for file in missing)
    except HubUnreachable as error:
        raise WeightsError("\n".join([_by_hand(missing, folder, str(error)), *wrong])) from error
    return Plan(folder, present, resolved, tuple(file for file in resolved if hub.cached(file) is not None))


def carry_out(plan: Plan, report: Callable[[Fetched], None] = lambda fetched: None) -> list[Fetched]:
    """Check the files that are there, download the others, check them too, and lock what was found.

    Args:
        plan: what `plan` found.
        report: called with each file once it is in place.

    Raises:
        WeightsError: A file is not what it should be, or the Hub stopped answering. What is complete stays,
            and what is not is gone on with next time.
        OutputError: The disk is too small, or the folder cannot be written.
    """
    if plan.download_bytes > plan.free_bytes:
        raise OutputError(
            f"{in_words(plan.download_bytes)} are to be downloaded, but only {in_words(plan.free_bytes)} "
            f"are free at {plan.folder}; make room, or name another folder"
        )
    done = []
    for file in plan.present:
        done.append(_check(file, plan.folder))
        report(done[-1])
    for index, file in enumerate(plan.missing):
        try:
            Hub().download(file, plan.folder)
        except HubUnreachable as error:
            raise WeightsError(_by_hand(plan.missing[index:], plan.folder, str(error))) from error
        done.append(_check(file, plan.folder))
        report(done[-1])
    return done


def in_words(count: int) -> str:
    """A number of bytes, in words."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size / 10:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _begun(file: PublishedFile, folder: Path) -> int:
    """How much of a file an earlier download left; none of it counts if it is more than there should be."""
    partial = file.partial(folder)
    found = partial.stat().st_size if partial.is_file() else 0
    return found if found <= (file.size or 0) else 0


def _check(file: PublishedFile, folder: Path) -> Fetched:
    """Compare a file with what is known of it, and lock what was found."""
    path = file.place(folder)
    found = path.stat()
    if (wrong := _wrong_size(file, folder)) is not None:
        raise WeightsError(wrong)
    earlier = read_lock(folder).get(file.name)
    unchanged = earlier is not None and earlier.describes(path)
    sha256 = earlier.sha256 if earlier is not None and unchanged else hash_file(path)
    # Where nothing is pinned, the hash that the Hub had on record when the file was fetched is in the lock.
    wanted = file.sha256 or (earlier.sha256 if earlier is not None and earlier.checked else None)
    if wanted not in (None, sha256):
        raise WeightsError(
            f"{path} has sha256 {sha256}, not {wanted}: it is damaged or another file; "
            "delete it and run `tetherflow fetch` again"
        )
    checked = wanted is not None
    if not unchanged:
        revision = file.revision if checked else None
        entry = Locked(revision, found.st_size, sha256, found.st_mtime_ns, checked)
        write_lock(folder, {file.name: entry})
    return Fetched(file, path, found.st_size, checked)


def _wrong_size(file: PublishedFile, folder: Path) -> str | None:
    """What is wrong with the size of a file that is there; None if nothing is."""
    path = file.place(folder)
    size = path.stat().st_size
    if file.size in (None, size):
        return None
    return (
        f"{path} has {size} bytes, not {file.size}: it is truncated or another file; "
        "delete it and run `tetherflow fetch` again"
    )


def _by_hand(files: Sequence[PublishedFile], folder: Path, reason: str) -> str:
    """An error that lists files and where to put them."""
    count = f"{len(files)} files of weights are" if len(files) > 1 else "1 file of weights is"
    lines = [
        f"{count} missing: {reason.rstrip('.')}. Put what is missing under {folder}, at OWNER/REPO/PATH:"
    ]
    for file in files:
        facts = [in_words(file.size)] if file.size is not None else []
        facts += [f"revision {file.revision[:12]}"] if file.revision else []
        lines.append(f"  {file.name}" + (f" ({', '.join(facts)})" if facts else ""))
    return "\n".join(lines)
