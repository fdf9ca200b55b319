"""The transformer of Wan2.1-T2V-1.3B at 480x832 with random weights: numerics, memory, and no waiting.

Run with `pytest -m gpu tests/gpu/test_full_size.py -s`; what it measures is printed.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import torch
from torch import Tensor

from tetherflow.backbone import Backbone
from tetherflow.cache import attention_for
from tetherflow.cache.attention import PLAIN
from tetherflow.errors import KernelError
from tetherflow.fp8 import require_fp8
from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import open_session, tuning_of
from tetherflow.rollout.session import Session
from tetherflow.tuning import Tuning
from tetherflow_backbones.causal_wan.add_norm import Tokens
from tetherflow_backbones.causal_wan.feed_forward import FeedForward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
FULL = ["backbone.use=synthetic"]


@pytest.fixture(autouse=True)
def empty_gpu() -> Iterator[None]:
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


def session_for(*changes: str) -> Session:
    return open_session(load_recipe("tethercache", [*FULL, *changes]), CUDA)


@torch.inference_mode()
def flows(session: Session, chunks: int = 2) -> Tensor:
    """What the transformer predicts of the same latents, pass after pass, while the cache fills."""
    backbone, cache = session.backbone, session.new_cache(1)
    generator = torch.Generator().manual_seed(0)
    text = backbone.transformer.prepare_text(backbone.encode_prompts(["a red circle"]))
    found = []
    for _ in range(chunks):
        latents = torch.randn(1, 3, *backbone.latent_shape, generator=generator).to(CUDA)
        cache.begin(3)
        for step, level in enumerate((1000.0, 500.0, 0.0)):
            if step == 2:
                cache.commit()
            timesteps = torch.full((1, 3), level, device=CUDA)
            flow = backbone.transformer(latents.to(session.dtype), timesteps, text, cache)
            found.append(flow.float().cpu())
        cache.end()
    return torch.cat(found)


def error(found: Tensor, exact: Tensor) -> float:
    """Root mean square difference, as a share of the exact one's root mean square."""
    return float((found - exact).norm() / exact.norm())


def test_fast_is_as_near_to_float32_as_parity_is() -> None:
    """Fused, compiled and with the fastest attention, in bf16: no further off than bf16 itself."""
    torch.backends.cuda.matmul.allow_tf32 = False
    # The same weights in both types: float32 takes bfloat16's, which the seed alone would not give.
    parity = session_for("runtime.numerics=parity", "runtime.attention=plain")
    rounded = flows(parity)
    exact = flows(widened(parity))
    del parity
    fast = session_for()
    found = flows(fast)
    print(f"\nerror of parity in bf16 {error(rounded, exact):.4f}, of fast {error(found, exact):.4f}")
    print(f"difference of fast from parity {error(found, rounded):.4f}")
    assert error(rounded, exact) < 0.03
    assert error(found, exact) < 1.25 * error(rounded, exact)
    assert error(found, rounded) < 2.5 * error(rounded, exact)


def test_fp8_products_are_a_few_percent_off() -> None:
    try:
        require_fp8(CUDA, torch.bfloat16)
    except KernelError as problem:
        pytest.skip(str(problem))
    bf16 = flows(session_for())
    fp8 = flows(session_for("runtime.matmul=fp8"))
    print(f"\ndifference of fp8 from bf16 {error(fp8, bf16):.4f}")
    assert 0.001 < error(fp8, bf16) < 0.15


def test_low_memory_agrees_and_saves_memory() -> None:
    peaks, videos = [], []
    for memory in ("normal", "low"):
        session = session_for(f"runtime.memory={memory}", "runtime.attention=cudnn")
        torch.cuda.reset_peak_memory_stats()
        stream = session.stream(["a red circle"], latent_frames=27, seeds=[0], decode=False)
        videos.append(torch.cat([chunk.latents.cpu() for chunk in stream], dim=1))
        peaks.append(torch.cuda.max_memory_allocated() / 2**30)
        del session, stream
        torch.cuda.empty_cache()
    print(f"\npeak memory {peaks[0]:.2f} GiB, low {peaks[1]:.2f} GiB")
    assert (videos[0] - videos[1]).abs().max() < 0.05 * videos[0].abs().max()
    assert peaks[0] < 14
    assert peaks[1] < 10


def test_autoencoder_leaves_the_gpu_when_it_rests() -> None:
    backbone = session_for().backbone
    latents = torch.randn(1, 1, *backbone.latent_shape, device=CUDA)
    before = backbone.decoder()(latents)
    held = torch.cuda.memory_allocated()
    with torch.inference_mode():
        backbone.rest()
    assert held - torch.cuda.memory_allocated() > 100 * 2**20
    assert torch.equal(backbone.decoder()(latents), before)
    backbone.rest()
    with torch.inference_mode():
        assert torch.equal(backbone.decoder()(latents), before)


def test_low_memory_decodes_chunk_after_chunk() -> None:
    """A rollout loads the autoencoder itself, and moves it off the GPU and back between chunks."""
    session = session_for("runtime.memory=low", "runtime.attention=cudnn")
    torch.cuda.reset_peak_memory_stats()
    chunks = list(session.stream(["a red circle"], latent_frames=9, seeds=[0]))
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"\nlow memory with decoding: peak {peak:.2f} GiB")
    assert peak < 22  # a card of 24 GB has as much to give
    del session
    torch.cuda.empty_cache()
    decoder = session_for().backbone.decoder()
    for chunk in chunks:
        assert chunk.frames is not None
        usual = decoder(chunk.latents)
        assert (chunk.frames.to(CUDA).int() - usual.int()).abs().float().mean() < 2  # of 255


@torch.inference_mode()
def test_a_steady_chunk_of_a_compiled_model_never_waits() -> None:
    """Neither for the device nor for a compiler."""
    session = session_for()
    stream = session.stream(["a red circle"], latent_frames=36, seeds=[0], decode=False)
    for _ in range(10):
        next(stream)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.compiler.set_stance("fail_on_recompile"):
            next(stream)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_fused_gelu_is_that_of_two_kernels() -> None:
    torch.manual_seed(0)
    network = FeedForward(1536, 8960).to(CUDA, torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, 4680, 1536, device=CUDA, dtype=torch.bfloat16)
    exact = network.float()(Tokens(x.float()))
    network.bfloat16()
    plain = network(Tokens(x))
    network.fuse()
    assert error(network(Tokens(x)).float(), exact) < 1.1 * error(plain.float(), exact)


def test_auto_compiles_and_takes_the_fastest_kernel() -> None:
    recipe = load_recipe("tethercache", FULL)
    session = open_session(recipe, CUDA)
    tuning = tuning_of(recipe, CUDA, session.backbone)
    assert tuning.compile
    assert tuning.attention.name == attention_for("auto", CUDA, torch.bfloat16).name


def widened(session: Session) -> Session:
    """The same model and policy in float32, its weights exactly those of bf16."""
    backbone: Backbone = session.backbone
    backbone.transformer.float()  # type: ignore[attr-defined]
    backbone.tune(attrs.evolve(Tuning(), attention=PLAIN))
    return Session(
        Widened(backbone), session.layout, session.policy, device=CUDA, dtype=torch.float32, attention=PLAIN
    )


class Widened:
    """A backbone whose prompts' embeddings are float32."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        return self._backbone.encode_prompts(prompts).float()

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)
