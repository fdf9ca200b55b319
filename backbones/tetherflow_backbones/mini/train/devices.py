"""One process a device: how a stage starts them, what each calls its own, and what they agree on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import torch
from torch import distributed, nn


def rank() -> int:
    """This process's number, 0 to `world() - 1`."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device() -> torch.device:
    """The device of this process, which it also makes the current one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def is_launched() -> bool:
    """Whether `launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(devices: int, arguments: Sequence[str]) -> None:
    """Run the training command once a device, and wait.

    Args:
        devices: Processes to start; on CUDA each takes a device.
        arguments: The command's, as on its own command line.

    Raises:
        SystemExit: A process failed; the others are ended then.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = ["torch.distributed.run", f"--nproc-per-node={devices}", f"--master-port={port}"]
    # A numeric address: not every machine's own name resolves.
    command = [*torchrun, "--master-addr=127.0.0.1", "-m", "tetherflow_backbones.mini.train", *arguments]
    threads = max(1, (os.cpu_count() or 1) // devices)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    code = subprocess.run([sys.executable, "-m", *command], env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def agreed(number: float, device: torch.device) -> float:
    """Rank 0's number, on every rank."""
    if not distributed.is_initialized():
        return number
    told = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.broadcast(told, 0)
    return float(told)


def check_same(network: nn.Module) -> None:
    """Make sure that all ranks hold the same weights, up to rounding.

    Raises:
        RuntimeError: They do not.
    """
    if not distributed.is_initialized():
        return
    own = torch.stack([part.detach().double().norm() for part in network.parameters()])
    first = own.clone()
    distributed.broadcast(first, 0)
    differ = (~own.isclose(first, rtol=1e-3)).any().double()
    distributed.all_reduce(differ)
    if bool(differ):
        raise RuntimeError(f"the ranks' weights differ (found on rank {rank()} of {world()})")


def leave() -> None:
    """Take leave of the other ranks; what follows is one process's work."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
