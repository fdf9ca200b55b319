"""A video autoencoder that leaves its device when idle comes back when it is used, and decodes the same."""

from __future__ import annotations

import torch

from tests.backbones.test_synthetic import OVERRIDES
from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import open_session
from tetherflow_backbones.synthetic import Synthetic

CPU = torch.device("cpu")


def test_low_memory_changes_no_latent() -> None:
    """Nor frames, but for rounding; `tests/gpu` shows that the autoencoder leaves the GPU meanwhile."""
    normal, low = (
        open_session(load_recipe("tethercache", [*OVERRIDES, f"runtime.memory={memory}"]), CPU)
        for memory in ("normal", "low")
    )
    videos = [list(session.stream(["a"], latent_frames=30, seeds=[0])) for session in (normal, low)]
    for one, other in zip(*videos, strict=True):
        assert one.frames is not None
        assert other.frames is not None
        assert torch.equal(one.latents, other.latents)
        assert (one.frames.int() - other.frames.int()).abs().max() <= 1
    assert normal.cache is not None
    assert low.cache is not None
    assert low.cache.nbytes < normal.cache.nbytes


def test_autoencoder_that_a_rollout_loads_can_be_moved() -> None:
    """What moves its parameters lays them out anew, as another type does; the next rollout uses them."""
    session = open_session(load_recipe("fifo", OVERRIDES), CPU)
    videos = []
    for _ in range(2):
        videos.append([chunk.frames for chunk in session.stream(["a"], latent_frames=6, seeds=[0])])
        network = session.backbone._vae.network  # type: ignore[attr-defined]
        network.double().float()
    for one, other in zip(*videos, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_autoencoder_works_after_a_rest() -> None:
    session = open_session(load_recipe("fifo", OVERRIDES), CPU)
    backbone = session.backbone
    assert isinstance(backbone, Synthetic)
    backbone.rest()  # nothing is loaded yet
    latents = torch.randn(1, 3, *backbone.latent_shape)
    before = backbone.decoder()(latents)
    with torch.inference_mode():
        backbone.rest()
        decoder = backbone.decoder()
    assert torch.equal(decoder(latents), before)
    backbone.rest()
    assert backbone.encoder()(before).shape == (1, 3, *backbone.latent_shape)
