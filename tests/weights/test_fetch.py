"""Fetching, from a small Hub on this machine that speaks the real one's HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.cli.test_commands import call
from tests.weights.hub_server import COMMIT, Served, serving, sha256
from tetherflow.errors import OutputError, WeightsError
from tetherflow.weights import PublishedFile
from tetherflow.weights.fetch import Fetched, carry_out, in_words, plan
from tetherflow.weights.folder import read_lock
from tetherflow.weights.hub import Hub
from tetherflow_backbones.reward_forcing import RewardForcing

constants = pytest.importorskip("huggingface_hub.constants")

CONTENT = {"o/big/sub/w.bin": bytes(range(256)) * 100_000, "o/small/vae.bin": b"autoencoder"}
OWN = RewardForcing.transformer_file
"""A file of which neither size nor commit is pinned."""

BLOCK = 10 * 1024 * 1024
"""What huggingface_hub writes at a time."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served(dict(CONTENT))
    with serving(served) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield served


def published(name: str, **facts: object) -> PublishedFile:
    owner, repo, path = name.split("/", 2)
    return attrs.evolve(PublishedFile(f"{owner}/{repo}", path), **facts)


def pinned(name: str, **facts: object) -> PublishedFile:
    content = CONTENT[name]
    known = {"revision": COMMIT, "size": len(content), "sha256": sha256(content)}
    return published(name, **(known | facts))


def fetch(folder: Path, *files: PublishedFile) -> list[Fetched]:
    return carry_out(plan(files, folder))


@pytest.mark.parametrize("make", [pinned, published])
def test_files_come_checked_and_locked(hub: Served, tmp_path: Path, make: object) -> None:
    files = [make(name) for name in CONTENT]  # type: ignore[operator]
    found = plan(files, tmp_path)
    assert found.download_bytes == sum(map(len, CONTENT.values()))
    assert not list(tmp_path.iterdir())
    seen: list[Fetched] = []
    assert carry_out(found, seen.append) == seen
    for fetched in seen:
        content = CONTENT[fetched.file.name]
        assert fetched.path == tmp_path / fetched.file.name
        assert fetched.path.read_bytes() == content
        assert (fetched.size, fetched.checked) == (len(content), True)
        entry = read_lock(tmp_path)[fetched.file.name]
        assert (entry.revision, entry.sha256, entry.checked) == (COMMIT, sha256(content), True)


def test_what_is_there_is_not_fetched_again(hub: Served, tmp_path: Path) -> None:
    fetch(tmp_path, *map(pinned, CONTENT))
    asked = len(hub.ranges)
    again = plan([pinned(name) for name in CONTENT], tmp_path)
    assert (again.missing, again.download_bytes) == ((), 0)
    assert all(fetched.checked for fetched in carry_out(again))
    assert len(hub.ranges) == asked


def test_a_broken_download_goes_on_where_it_stopped(hub: Served, tmp_path: Path) -> None:
    hub.cut = 2 * BLOCK + 5
    fetch(tmp_path, pinned("o/big/sub/w.bin"))
    assert hub.ranges == [None, f"bytes={2 * BLOCK}-"]


def test_so_does_one_that_was_given_up(hub: Served, tmp_path: Path) -> None:
    hub.cut, hub.gone_after_cut = BLOCK + 5, True
    with pytest.raises(
        WeightsError, match=r"1 file of weights is missing: o/big/sub/w.bin cannot be fetched"
    ):
        fetch(tmp_path, pinned("o/big/sub/w.bin"))
    assert not (tmp_path / "o/big/sub/w.bin").exists()
    hub.files |= CONTENT
    again = plan([pinned("o/big/sub/w.bin")], tmp_path)
    assert (again.begun_bytes, again.download_bytes) == (BLOCK, len(CONTENT["o/big/sub/w.bin"]) - BLOCK)
    carry_out(again)
    assert hub.ranges[-1] == f"bytes={BLOCK}-"
    assert plan([pinned("o/big/sub/w.bin")], tmp_path).begun_bytes == 0


def test_what_huggingface_hub_has_cached_is_not_downloaded(
    hub: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "cache" / "models--o--small" / "snapshots" / COMMIT / "vae.bin"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT["o/small/vae.bin"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    found = plan([pinned("o/small/vae.bin"), pinned("o/big/sub/w.bin")], tmp_path / "weights")
    assert found.cached_bytes == len(CONTENT["o/small/vae.bin"])
    assert found.download_bytes == len(CONTENT["o/big/sub/w.bin"])
    (fetched,) = fetch(tmp_path / "weights", pinned("o/small/vae.bin"))
    assert fetched.path.read_bytes() == CONTENT["o/small/vae.bin"]
    assert hub.ranges == []


def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="cannot write /proc/weights/o/small"):
        Hub().download(published("o/small/vae.bin", revision=COMMIT), Path("/proc/weights"))


def test_a_record_that_contradicts_the_pin_stops_it_before_it_starts(hub: Served, tmp_path: Path) -> None:
    for facts, text in (
        ({"size": 3}, "serves size 11 .* but 3 is pinned"),
        ({"sha256": "a" * 64}, "serves sha256"),
    ):
        with pytest.raises(WeightsError, match=text):
            plan([pinned("o/small/vae.bin", **facts)], tmp_path)
    assert hub.ranges == []


def test_content_that_contradicts_the_record(hub: Served, tmp_path: Path) -> None:
    hub.lies["vae.bin"] = "a" * 64
    with pytest.raises(
        WeightsError, match=r"vae.bin has sha256 .*, not aaaa.* delete it and run `tetherflow fetch`"
    ):
        fetch(tmp_path, published("o/small/vae.bin"))
    assert read_lock(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("o/small/no.bin", "o/small has no file no.bin at revision"),
        ("o/none/w.bin", "cannot be fetched: 404"),
    ],
)
def test_what_the_hub_does_not_have(hub: Served, tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(WeightsError, match=text):
        plan([published(name)], tmp_path)


def test_without_a_network_the_files_and_their_places_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    (tmp_path / "o/small").mkdir(parents=True)
    (tmp_path / "o/small/vae.bin").write_bytes(CONTENT["o/small/vae.bin"])
    with pytest.raises(WeightsError) as caught:
        plan([*map(pinned, CONTENT), published("o/other/x.bin")], tmp_path)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("2 files of weights are missing: o/big/sub/w.bin cannot be fetched: ")
    assert first.endswith(f"Put what is missing under {tmp_path}, at OWNER/REPO/PATH:")
    assert rest == [f"  o/big/sub/w.bin (25.60 MB, revision {COMMIT[:12]})", "  o/other/x.bin"]


def test_a_file_of_the_wrong_size_is_told_with_those_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "o/small/vae.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"short")
    with pytest.raises(WeightsError) as caught:
        plan([*map(pinned, CONTENT)], tmp_path, offline=True)
    *_, missing, wrong = str(caught.value).splitlines()
    assert missing.startswith("  o/big/sub/w.bin")
    assert wrong.startswith(f"{path} has 5 bytes, not 11")


def test_a_local_folder_needs_no_network(tmp_path: Path) -> None:
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
    big, small = fetch(tmp_path, pinned("o/big/sub/w.bin"), published("o/small/vae.bin"))
    assert (big.checked, small.checked) == (True, False)
    lock = read_lock(tmp_path)
    assert (lock["o/big/sub/w.bin"].revision, lock["o/small/vae.bin"].revision) == (COMMIT, None)
    with pytest.raises(WeightsError, match="they are not there, and nothing may be downloaded"):
        plan([published("o/other/x.bin")], tmp_path, offline=True)


@pytest.mark.parametrize(
    ("content", "text"), [(b"short", "has 5 bytes, not 11: it is truncated"), (b"autoencodeR", "has sha256")]
)
def test_a_wrong_file_is_found_out_and_kept(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "o/small/vae.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=text):
        fetch(tmp_path, pinned("o/small/vae.bin"))
    assert path.read_bytes() == content


def test_what_was_fetched_unpinned_is_checked_by_the_lock(hub: Served, tmp_path: Path) -> None:
    fetch(tmp_path, published("o/small/vae.bin"))
    (tmp_path / "o/small/vae.bin").write_bytes(b"autoencodeR")
    with pytest.raises(WeightsError, match="has sha256"):
        fetch(tmp_path, published("o/small/vae.bin"))


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    found = plan([], tmp_path / "not" / "there")
    huge = attrs.evolve(found, missing=(published("o/big/x", size=10**18),))
    with pytest.raises(OutputError, match=r"1000000000.00 GB are to be downloaded, but only .* are free"):
        carry_out(huge)


@pytest.mark.parametrize(("there", "rest"), [(0, 100), (95, 5), (100, 0), (101, 100)])
def test_what_an_earlier_try_left_is_not_downloaded_again(tmp_path: Path, there: int, rest: int) -> None:
    """More than there should be is thrown away."""
    file = published("o/big/x", revision=COMMIT, size=100)
    file.partial(tmp_path).parent.mkdir(parents=True)
    file.partial(tmp_path).write_bytes(bytes(there))
    assert attrs.evolve(plan([], tmp_path), missing=(file,)).download_bytes == rest


def test_the_announcement_counts_it(hub: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *others, own = sorted(RewardForcing.published_files(), key=lambda file: file.name == OWN)
    for file in others:
        file.place(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        file.place(tmp_path).write_bytes(b"no weights")
    hub.files[OWN] = bytes(3_000_000)
    partial = attrs.evolve(own, revision=COMMIT).partial(tmp_path)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(1_000_000))
    assert call("fetch", "reward-forcing", "--folder", str(tmp_path)) == 2  # at the files that are no weights
    assert "to download: 1 files, 2.00 MB besides 1.00 MB from an earlier try (" in capsys.readouterr().err


def test_sizes_in_words() -> None:
    assert [in_words(n) for n in (11361920418, 16837417, 6623, 0)] == [
        "11.36 GB",
        "16.84 MB",
        "6.6 kB",
        "0.0 kB",
    ]
