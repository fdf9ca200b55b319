"""Half an hour of video: constant memory, and positions far past any table."""

from __future__ import annotations

import gc
import resource
import sys

import attrs
import pytest
import torch
from torch import Tensor

from tests.backbones.causal_wan.models import SMALL, save, transformer
from tests.cache.plugins import tethercache
from tests.rollout.small import LATENT, Small
from tetherflow import Layout
from tetherflow.cache import CacheEngine, CacheShape
from tetherflow.pipeline import Pipeline
from tetherflow.rollout.session import Session
from tetherflow_backbones.causal_wan import WanRotary
from tetherflow_backbones.self_forcing import SelfForcing
from tetherflow_policies.sliding_window import SlidingWindow

HALF_AN_HOUR = 7200
ONE_LAYER = attrs.evolve(SMALL, num_layers=1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The smallest real transformer, one step a chunk: length is what counts here."""
    path = save(transformer(ONE_LAYER), tmp_path_factory.mktemp("weights") / "one.safetensors")
    settings = {
        "transformer": path,
        "architecture": attrs.asdict(ONE_LAYER),
        "latent_size": LATENT[1:],
        "steps": (1000,),
    }
    return Small(SelfForcing.Options.model_validate(settings))


def resident() -> int:
    """The most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def buffers(cache: CacheEngine) -> list[int]:
    """Where the cache's tensors are, and how large they are in all."""
    found = [cache.nbytes]
    for layer in cache.layers:
        found += [layer.keys.data_ptr(), layer.values.data_ptr(), layer.book.origins.data_ptr()]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fifo", "tethercache"])
def test_half_an_hour_takes_no_more_memory_than_a_minute(backbone: Small, policy: str) -> None:
    if policy == "fifo":
        session = Session(backbone, Layout(0, 0, 7), Pipeline(SlidingWindow()), positions="absolute")
    else:
        session = Session(backbone, Layout(1, 2, 4), tethercache())
    frames, places, memory = 0, set(), 0
    tensors: list[int] = []
    for chunk in session.stream(["a red circle"], latent_frames=HALF_AN_HOUR, seeds=[0]):
        assert chunk.decoded is not None
        assert session.cache is not None
        frames += chunk.decoded.shape[1]
        places.add(tuple(buffers(session.cache)))
        if chunk.index in (100, 1000, 2399):
            gc.collect()
            tensors.append(sum(issubclass(type(item), Tensor) for item in gc.get_objects()))
            memory = memory or resident()
    assert frames == 1 + 4 * (HALF_AN_HOUR - 1)
    assert len(places) == 1
    assert max(tensors) == min(tensors)
    assert resident() - memory < 4 * 2**20
    assert bool(chunk.latents.isfinite().all())


@pytest.mark.parametrize("start", [0, 1023, 7197, 10**6])
def test_absolute_positions_go_on_past_any_table(start: int) -> None:
    """Attention depends on distances alone, as exactly late as early; the published table ends at 1024."""
    grid, layout = (2, 2), Layout(0, 0, 6)
    torch.manual_seed(0)
    inputs = torch.randn(6, 3, 1, 3 * 4, 2, 24)

    def attended(first_frame: int) -> Tensor:
        cache = CacheEngine(
            CacheShape(1, 2, 24, 4),
            layout,
            Pipeline(SlidingWindow()),
            WanRotary(24, grid),
            positions="absolute",
        )
        cache.frames_written = first_frame
        found = []
        for query, key, value in inputs:
            cache.begin(3)
            cache.commit()
            found.append(cache.attend(0, query, key, value))
            cache.end()
        return torch.stack(found)

    torch.testing.assert_close(attended(start), attended(0), atol=1e-5, rtol=1e-5)
