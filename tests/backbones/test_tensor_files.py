"""Opening files of tensors: mapped, not read; nothing in them is executed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.backbones.published.formats import save_sharded
from tetherflow.errors import WeightsError
from tetherflow_backbones.tensor_files import files_of, open_tensors

STATE = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(4, dtype=torch.bfloat16)}


def read(path: Path) -> dict[str, Tensor]:
    stored = open_tensors(path)
    tensors = {name: entry.read() for name, entry in stored.items()}
    assert {name: entry.shape for name, entry in stored.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    return tensors


def equal(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert equal(read(tmp_path / "w.safetensors"))
    assert equal(read(tmp_path))


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_pytorch_files_new_and_old(tmp_path: Path, archive: bool, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=archive)
    assert equal(read(path))


@pytest.mark.parametrize("shards", [1, 2])
def test_sharded(tmp_path: Path, shards: int) -> None:
    index = save_sharded(tmp_path, STATE, shards)
    assert equal(read(index))
    assert equal(read(tmp_path))
    assert len(files_of(tmp_path)) == shards


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights are missing: .*nowhere.pt is not a file"):
        open_tensors(tmp_path / "nowhere.pt")
    with pytest.raises(WeightsError, match="should hold one checkpoint, found: none"):
        open_tensors(tmp_path)


def test_folder_with_two_checkpoints(tmp_path: Path) -> None:
    for name in ("one.pt", "two.pt"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(WeightsError, match=r"found: one.pt, two.pt; name the file"):
        open_tensors(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    index = save_sharded(tmp_path, STATE, 2)
    next(iter(tmp_path.glob("*-00002-of-00002.safetensors"))).unlink()
    with pytest.raises(WeightsError, match="lacks 1 of 2 shards: diffusion_pytorch_model-00002-of-00002"):
        open_tensors(index)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    index = save_sharded(tmp_path, STATE, 2)
    for shard in tmp_path.glob("*-of-00002.safetensors"):
        save_file(STATE, shard)
    with pytest.raises(WeightsError, match="holds a twice"):
        open_tensors(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"weight_map": []})])
def test_index_of_another_kind(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(WeightsError, match="is no index of a sharded checkpoint"):
        open_tensors(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_safetensors(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        WeightsError, match=r"w.safetensors cannot be read as safetensors .* may be truncated"
    ):
        open_tensors(path)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("kept", [0, 4, 100, -40])
def test_truncated_pytorch_file(tmp_path: Path, archive: bool, kept: int) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(100)}, path, _use_new_zipfile_serialization=archive)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"w.pt cannot be read as a PyTorch file of tensors \(\w"):
        open_tensors(path)


def test_another_file_under_the_name_of_one(tmp_path: Path) -> None:
    for content in ("<html>not found</html>", "hello world"):
        (tmp_path / "w.pt").write_text(content)
        with pytest.raises(WeightsError, match=r"\(its content is no pickle of tensors\)"):
            open_tensors(tmp_path / "w.pt")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


def test_code_in_a_checkpoint_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Trap()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="or hold more than weights, which is never loaded"):
        open_tensors(tmp_path / "w.pt")
    assert not Path("sprung").exists()


@pytest.mark.parametrize(("more", "name"), [(Trap(), r"\w+\.mkdir"), (Namespace(), r"argparse\.Namespace")])
def test_what_is_more_than_weights_is_named_without_advice_to_trust_it(
    tmp_path: Path, more: object, name: str
) -> None:
    torch.save({"a": torch.zeros(1), "b": more}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"\(it refers to {name}\); it may be truncated") as caught:
        open_tensors(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "an empty one"),
        ([torch.zeros(1)], "list"),
        ({"a": 3, "b": torch.zeros(1)}, r"a \(int\)"),
        ({"state_dict": {"b": torch.zeros(1)}, "step": 3}, r"state_dict \(dict\), step \(int\)"),
        (dict.fromkeys("abcd", 3), r"a \(int\), b \(int\), c \(int\), …"),
    ],
)
def test_content_that_is_no_state(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=f"holds no dictionary of tensors; found: {found}. Save"):
        open_tensors(tmp_path / "w.pt")


MEASURE = """
import gc, re, sys
from pathlib import Path
import torch
from tetherflow_backbones.tensor_files import open_tensors

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = anonymous()
opened = open_tensors(Path(sys.argv[1]))
held = {name: entry.read().to("cpu", torch.bfloat16) for name, entry in opened.items()}
print(anonymous() - before, sum(t.nbytes for t in held.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_host_holds_no_second_copy(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    """What is mapped belongs to the file; memory of the process's own is what it converted, at most once."""
    path = tmp_path / f"w{suffix}"
    state = {f"t{n}": torch.ones(2_000_000, dtype=dtype) for n in range(20)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
    ).stdout.split()
    own, converted = map(int, measured)
    assert own < (0.2 if dtype == torch.bfloat16 else 1.2) * converted


@pytest.mark.parametrize("text", ["a cat riding a bicycle", "0", "}", "<html>", "\x80\x02."])
def test_text_in_place_of_a_pytorch_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"w\.pt cannot be read as a PyTorch file of tensors"):
        open_tensors(path)
