"""The folder of weights and its lock."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import attrs
import pytest

from tetherflow.errors import OutputError, WeightsError
from tetherflow.weights import sha256_of, weights_folder
from tetherflow.weights.folder import LOCK, Locked, digest, read_lock, write_lock


def locked(path: Path, sha256: str) -> Locked:
    found = path.stat()
    return Locked("c" * 40, found.st_size, sha256, found.st_mtime_ns, checked=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "owner" / "repo" / "w.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return path


def test_usual_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TETHERFLOW_WEIGHTS", str(tmp_path))
    assert weights_folder() == tmp_path
    monkeypatch.delenv("TETHERFLOW_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "tetherflow" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_folder() == tmp_path / ".cache" / "tetherflow" / "weights"


def test_lock_comes_back_and_grows(file: Path, tmp_path: Path) -> None:
    one, two = locked(file, "a" * 64), attrs.evolve(locked(file, "b" * 64), revision=None, checked=False)
    assert read_lock(tmp_path) == {}
    write_lock(tmp_path, {"one": one})
    write_lock(tmp_path, {"two": two})
    assert read_lock(tmp_path) == {"one": one, "two": two}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [LOCK]


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 3}', '{"a": {"size": 3}}'])
def test_lock_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(
        WeightsError, match=r"is no lock of weights .* delete it and run `tetherflow fetch` again"
    ):
        read_lock(tmp_path)


def test_lock_that_cannot_be_written(file: Path) -> None:
    with pytest.raises(OutputError, match="cannot write /proc/"):
        write_lock(Path("/proc"), {"a": locked(file, "a" * 64)})


def test_hash_is_the_contents(file: Path) -> None:
    assert sha256_of(file) == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(WeightsError, match="cannot be read"):
        sha256_of(file.with_name("nothing"))


def test_hash_is_taken_from_the_lock_while_the_file_is_unchanged(file: Path, tmp_path: Path) -> None:
    write_lock(tmp_path, {"owner/repo/w.bin": locked(file, "a" * 64)})
    assert sha256_of(file) == "a" * 64
    os.utime(file, ns=(0, 0))
    assert sha256_of(file) == hashlib.sha256(b"weights").hexdigest()


def test_digest_is_over_all_files_in_order(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"a")
    two.write_bytes(b"b")
    assert digest([one, two]) != digest([two, one]) != digest([one])
    wanted = hashlib.sha256(hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest()).hexdigest()
    assert digest([one, two]) == wanted
