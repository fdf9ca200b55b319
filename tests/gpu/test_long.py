"""Half an hour of video at full size: no chunk takes more memory than an early one.

Run with `pytest -m gpu tests/gpu/test_long.py -s`, which takes an H100 a quarter of an hour; what it
measures is printed.
"""

from __future__ import annotations

import resource
import time
from itertools import islice

import pytest
import torch

from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import open_session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
CHUNKS = 2400  # of 3 latent frames, 0.75 s of video each
BLOCK = 100


def test_half_an_hour_of_video() -> None:
    changes = ["backbone.use=synthetic", "runtime.matmul=fp8"]
    session = open_session(load_recipe("tethercache", changes), CUDA)
    stream = session.stream(["a red circle"], latent_frames=3 * CHUNKS, seeds=[0], decode=False)
    ours, whole, host = (
        [],
        [],
        [],
    )  # what torch allocates, what the device has given away, what the process takes
    print(f"\n{torch.cuda.get_device_name()}, {session.attention.name}, torch {torch.__version__}")
    for block in range(CHUNKS // BLOCK):
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        for chunk in islice(stream, BLOCK):
            last = chunk
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        ours.append(torch.cuda.max_memory_allocated())
        free, total = torch.cuda.mem_get_info()
        whole.append(total - free)
        host.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        print(
            f"chunks {block * BLOCK + 1:4} to {(block + 1) * BLOCK:4}: {seconds / BLOCK * 1e3:6.1f} ms each, "
            f"GPU {ours[-1] / 2**30:.2f} of {whole[-1] / 2**30:.2f} GiB, host {host[-1] / 2**30:.2f} GiB",
            flush=True,
        )
    assert next(stream, None) is None
    assert bool(last.latents.isfinite().all())
    assert max(ours[2:]) <= ours[1] + 2**24
    assert max(whole[2:]) <= whole[1] + 2**27
    assert host[-1] <= host[1] + 2**28
