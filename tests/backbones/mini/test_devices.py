"""Training on several devices: one process each, different clips, the same weights and the same clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tetherflow_backbones.mini.train import devices
from tetherflow_backbones.mini.train.__main__ import main
from tetherflow_backbones.mini.weights import load_vae, read_json


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began(tmp_path: Path) -> None:
    def run(steps: str, *more: str) -> None:
        few = ("--clips", "2", "--warmup", "1", "--report-every", "1", "--checkpoint-every", "2")
        main(["vae", "--work", str(tmp_path), "--tiny", "--no-compile", "--steps", steps, *few, *more])

    run("2")
    before = load_vae(tmp_path).state_dict()
    assert read_json(tmp_path / "vae.record.json")["clips_a_step"] == 2
    run("4", "--resume", "--devices", "2")  # ends in an error when the two processes' weights differ
    after = load_vae(tmp_path).state_dict()
    record = read_json(tmp_path / "vae.record.json")
    assert (record["steps"], record["devices"], record["clips_a_step"]) == (4, 2, 4)
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_weights_that_differ_are_found(tmp_path: Path) -> None:
    path = tmp_path / "store"
    torch.multiprocessing.start_processes(_compare, (str(path),), nprocs=2, start_method="fork")
    assert path.with_suffix(".found").read_text() == "differ"


def _compare(rank: int, store: str) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = nn.Linear(3, 3)
    devices.check_same(network)
    assert devices.agreed(float(rank), torch.device("cpu")) == 0.0
    with torch.no_grad():
        network.weight[0, 0] += rank
    try:
        devices.check_same(network)
    except RuntimeError:
        if rank == 0:
            Path(store).with_suffix(".found").write_text("differ")
    torch.distributed.destroy_process_group()
