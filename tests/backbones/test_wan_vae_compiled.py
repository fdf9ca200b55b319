"""A decoder with compiled blocks: the same frames, few graphs, and only where they pay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from tests.backbones.published.formats import vae
from tests.backbones.test_synthetic import CPU, TINY
from tetherflow.tuning import Tuning
from tetherflow_backbones.synthetic import Synthetic
from tetherflow_backbones.wan_vae import WanVAE


def latents(frames: int) -> Tensor:
    return torch.randn(1, frames, 16, 2, 3, generator=torch.Generator().manual_seed(0))


def stream(autoencoder: WanVAE, parts: tuple[int, ...]) -> list[Tensor]:
    decoder = autoencoder.decoder()
    return [decoder.intensities(part) for part in latents(sum(parts)).split(parts, dim=1)]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_frames_are_the_same_from_one_graph_a_shape(backend: str) -> None:
    """Were a graph broken by what does not compile, there would be more; blocks of one shape share theirs."""
    autoencoder, counter = WanVAE(vae()), CompileCounterWithBackend(backend)
    parts = (3, 3, 3, 3, 2)  # the first and the last are computed plainly
    plain = stream(autoencoder, parts)
    torch._dynamo.reset()  # of the graphs of other tests, which count towards the most a function may have
    counters.clear()
    autoencoder.tune(Tuning(compile=True, chunk_frames=3), backend=counter)
    for _ in range(2):  # another stream compiles nothing
        for found, expected in zip(stream(autoencoder, parts), plain, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert counter.frame_count == 5
    assert not counters["graph_break"]


@torch.inference_mode()
def test_chunks_of_another_length_are_not_compiled_for() -> None:
    autoencoder, counter = WanVAE(vae()), CompileCounterWithBackend("aot_eager")
    plain = stream(autoencoder, (2, 2, 2))
    autoencoder.tune(Tuning(compile=True, chunk_frames=3), backend=counter)
    assert all(map(torch.equal, stream(autoencoder, (2, 2, 2)), plain))
    autoencoder.tune(Tuning())
    stream(autoencoder, (3, 3))
    assert counter.frame_count == 0


@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_to_save_memory_latent_frames_pass_one_by_one(compiled: bool) -> None:
    autoencoder = WanVAE(vae())
    plain = stream(autoencoder, (3, 3, 2))
    autoencoder.tune(Tuning(compile=compiled, low_memory=True), backend="aot_eager")
    seen: list[int] = []
    autoencoder.network.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2]))
    for found, expected in zip(stream(autoencoder, (3, 3, 2)), plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert seen == [1] * 8
    autoencoder.tune(Tuning())
    assert len(stream(autoencoder, (3, 3))) == 2
    assert seen[8:] == [1, 2, 3]


def test_backbone_tunes_its_autoencoder_whether_it_is_loaded_yet_or_not() -> None:
    backbone = Synthetic(Synthetic.Options(**TINY), device=CPU)  # type: ignore[arg-type]

    def is_compiled() -> bool:
        blocks = backbone._autoencoder().network.decoder.mid_block.resnets
        return all("forward" in vars(block) for block in blocks)

    backbone.tune(Tuning(compile=True))
    assert is_compiled()
    backbone.tune(Tuning())
    assert not is_compiled()
