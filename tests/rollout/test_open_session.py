"""What recipes that are compared in one process share."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tetherflow.cache.fusing import compiled, step_by_step
from tetherflow.errors import KernelError
from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import (
    Backbones,
    first_device,
    open_session,
    threads_for,
    tuning_of,
    worth_compiling,
)
from tetherflow.tuning import Tuning

pytestmark = pytest.mark.usefixtures("toy")
TOY = ["backbone.use=toy"]
CPU = torch.device("cpu")


def test_recipes_of_one_backbone_share_its_weights() -> None:
    backbones = Backbones()
    fifo, tethercache = load_recipe("fifo", TOY), load_recipe("tethercache", TOY)
    shared = backbones.of(fifo, CPU)
    assert backbones.of(tethercache, CPU) is shared
    assert open_session(tethercache, CPU, shared).backbone is shared
    for change in ("backbone.weights_seed=1", "runtime.precision=bfloat16", "runtime.numerics=parity"):
        assert backbones.of(load_recipe("fifo", [*TOY, change]), CPU) is not shared


def test_attention_is_the_recipes() -> None:
    for name, chosen in (("auto", "plain"), ("math", "math"), ("flash", "flash")):
        recipe = load_recipe("fifo", [*TOY, f"runtime.attention={name}"])
        session = open_session(recipe, CPU)
        assert session.attention.name == session.new_cache(1).attention.name == chosen
    with pytest.raises(KernelError, match="'flash-attn-4' is not installed"):
        open_session(load_recipe("fifo", [*TOY, "runtime.attention=flash-attn-4"]), CPU)


def test_runtime_tunes_the_backbone() -> None:
    """auto compiles for a large model on a GPU alone."""
    session = open_session(load_recipe("fifo", TOY), CPU)
    cuda = torch.device("cuda", 0)

    def compiles(device: torch.device, *changes: str) -> bool:
        return worth_compiling(load_recipe("fifo", [*TOY, *changes]), device, session.backbone)

    assert compiles(CPU, "runtime.compile=always")
    assert not compiles(CPU)
    assert not compiles(cuda)  # the toy is small
    tuning = tuning_of(load_recipe("fifo", [*TOY, "rollout.chunk_frames=2"]), CPU, session.backbone)
    assert (tuning.chunk_frames, tuning.products) == (2, "precision")


def test_a_tuned_rollout_is_the_same_but_for_rounding() -> None:
    """And what the cache does is compiled for all layers together, none of it anew once the cache is full."""
    counter = CompileCounterWithBackend("aot_eager")
    plain, tuned = (
        open_session(load_recipe("tethercache", [*TOY, f"runtime.compile={choice}"]), CPU)
        for choice in ("never", "always")
    )
    tuned.backbone.transformer.tune(Tuning(compile=True), "aot_eager")
    assert (plain.fuse, tuned.fuse) == (step_by_step, compiled)
    tuned.fuse = cache(partial(torch.compile, backend=counter))
    counts, videos = [], []
    for session in (plain, tuned):
        latents = []
        for chunk in session.stream(["a"], latent_frames=36, seeds=[0], decode=False):
            latents.append(chunk.latents)
            counts.append(counter.frame_count)
        videos.append(torch.cat(latents, 1))
    torch.testing.assert_close(*videos, atol=1e-4, rtol=1e-4)
    chunks = len(counts) // 2
    assert set(counts[:chunks]) == {0}
    assert counts[-chunks] > 0
    assert counts[-5] == counts[-1] <= 17


@pytest.mark.parametrize("choice", ["never", "always"])
@torch.inference_mode()
def test_a_context_pass_without_its_flow_leaves_the_same(choice: str) -> None:
    session = open_session(load_recipe("h2o-tame", TOY), CPU)
    session.backbone.transformer.tune(Tuning(compile=choice == "always"), "aot_eager")
    backbone, caches = session.backbone, [session.new_cache(1) for _ in range(2)]
    text = backbone.transformer.prepare_text(backbone.encode_prompts(["a"]))
    for chunk in range(12):
        noise = session.noise([torch.Generator().manual_seed(chunk)], session.chunk_frames)
        found = [noise(0) for _ in range(4)]
        seen, plain = (
            session.sampler.denoise(held, text, found.__getitem__, observe)
            for held, observe in zip(caches, (lambda step, flow: None, None), strict=True)
        )
        assert torch.equal(seen, plain)
    for one, other in zip(*(held.snapshot()["layers"] for held in caches), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_backbone_without_the_products_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else it is asked for, a backbone that cannot be tuned computes as it does."""
    backbone = open_session(load_recipe("fifo", TOY), CPU).backbone
    monkeypatch.setattr(type(backbone), "transformer", property(lambda self: object()))
    backbone.tune(Tuning(compile=True))
    with pytest.raises(KernelError, match=r"Toy has no fp8 products; use runtime.matmul: precision"):
        backbone.tune(Tuning(products="fp8"))


def test_fp8_rollout_goes_through() -> None:
    session = open_session(load_recipe("tethercache", [*TOY, "runtime.matmul=fp8"]), CPU)
    chunks = list(session.stream(["a"], latent_frames=27, seeds=[0], decode=False))
    assert bool(chunks[-1].latents.isfinite().all())


def test_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert first_device(load_recipe("fifo", TOY)) == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert first_device(load_recipe("fifo", TOY)) == torch.device("cuda", 0)
    assert first_device(load_recipe("fifo", [*TOY, "runtime.device=cuda:2"])) == torch.device("cuda", 2)
    assert first_device(load_recipe("fifo", [*TOY, "runtime.device=cpu", "runtime.devices=3"])) == CPU


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads_for(load_recipe("fifo", [*TOY, f"runtime.threads={before + 1}"])):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
