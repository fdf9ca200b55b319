"""What only a GPU can show; run with `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tetherflow import Layout
from tetherflow.cache import CacheEngine, CacheShape
from tetherflow.errors import StageError
from tetherflow.pipeline import Pipeline
from tetherflow_backbones.causal_wan import WanRotary
from tetherflow_policies.drift_distance import DriftDistance
from tetherflow_policies.grab import Relevance, TemporalDiversity, TopM
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPE = CacheShape(layers=2, heads=2, head_dim=24, tokens=16)


def tethercache(score: Relevance | None = None) -> Pipeline:
    scorers = [score or Relevance(name="relevance"), TemporalDiversity(name="temporal-diversity")]
    return Pipeline(RecallWindow(), scorers, TopM(), [Tame()])


def engine(device: str, *, strict: bool = False, pipeline: Pipeline | None = None) -> CacheEngine:
    rotary = WanRotary(24, (4, 4))
    policy = pipeline or tethercache()
    return CacheEngine(SHAPE, Layout(2, 4, 4), policy, rotary, batch=3, device=device, strict=strict)


def run_chunk(cache: CacheEngine, inputs: torch.Tensor) -> torch.Tensor:
    """One chunk of one denoising and one context pass; `inputs` is `[2, layers, 3, B, L, H, D]`."""
    cache.begin(3)
    outputs = []
    for step in range(2):
        if step:
            cache.commit()
        for layer in range(SHAPE.layers):
            outputs.append(cache.attend(layer, *inputs[step, layer]))
    cache.end()
    return torch.stack(outputs)


def make_inputs(chunk: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(chunk)
    return torch.randn(
        2, SHAPE.layers, 3, 3, 3 * SHAPE.tokens, SHAPE.heads, SHAPE.head_dim, generator=generator
    )


def test_a_gpu_decides_and_attends_as_the_cpu_does() -> None:
    on_cpu, on_gpu = engine("cpu", strict=True), engine("cuda")
    for chunk in range(12):
        inputs = make_inputs(chunk)
        expected, found = run_chunk(on_cpu, inputs), run_chunk(on_gpu, inputs.cuda())
        assert torch.equal(on_cpu.origins(), on_gpu.origins().cpu())
        torch.testing.assert_close(found.cpu(), expected, atol=2e-3, rtol=2e-3)


def measured() -> Pipeline:
    """TetherCache with α and τ driven by a signal."""
    distance = DriftDistance.Options(low=0.3, high=0.9, near=0.1, far=2.0)
    policy = tethercache()
    schedules = {
        "temporal-diversity": {"alpha": DriftDistance(distance)},
        "Tame": {"tau": DriftDistance(distance)},
    }
    return Pipeline(policy.evictor, policy.scorers, policy.selector, policy.editors, schedules=schedules)


@pytest.mark.parametrize("policy", [tethercache, measured])
def test_a_steady_chunk_never_waits_for_the_device(policy: Callable[[], Pipeline]) -> None:
    cache = engine("cuda", pipeline=policy())
    inputs = [make_inputs(chunk).cuda() for chunk in range(10)]
    for chunk in range(8):
        run_chunk(cache, inputs[chunk])
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        run_chunk(cache, inputs[8])
        run_chunk(cache, inputs[9])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_deferred_checks_report_a_fault_one_chunk_later() -> None:
    class Broken(Relevance):
        def score(self, candidates):  # type: ignore[no-untyped-def]
            return super().score(candidates) * float("nan")

        score.tetherflow_impl = Relevance.score.tetherflow_impl  # type: ignore[attr-defined]

    cache = engine("cuda", pipeline=tethercache(Broken(name="relevance")))

    def roll_out() -> None:
        for chunk in range(8):
            run_chunk(cache, make_inputs(chunk).cuda())
        cache.checks.drain()

    with pytest.raises(StageError, match=r"plugin 'relevance' .*score.*not finite"):
        roll_out()


def test_golden_traces_stay_within_the_fast_tolerance_on_the_gpu() -> None:
    from safetensors.torch import load_file

    from tetherflow.plugins import load_backbone
    from tetherflow.rollout.sampler import Sampler
    from tetherflow.rollout.schedule import Schedule
    from tetherflow.testing.replay import _read_golden, build_policy

    folder = Path(__file__).parent.parent / "golden"
    golden = _read_golden(folder)
    cls = load_backbone("self-forcing")
    options = cls.Options.model_validate(
        {"transformer": folder / "weights.safetensors", "architecture": golden["arch"], "latent_size": (8, 8)}
    )
    torch.backends.cuda.matmul.allow_tf32 = False
    backbone = cls(options, device=torch.device("cuda"))
    for name, settings in golden["traces"].items():
        trace = {key: value.cuda() for key, value in load_file(folder / f"{name}.safetensors").items()}
        pipeline, layout, positions = build_policy(settings)
        cache = CacheEngine(
            backbone.cache_shape,
            layout,
            pipeline,
            backbone.rotary,
            positions=positions,
            device="cuda",
            strict=False,
        )
        sampler = Sampler(backbone.transformer, Schedule.of(backbone.sampler), 0.0, torch.float32)
        with torch.inference_mode():
            text = backbone.transformer.prepare_text(trace["context"][None])
            latents = [
                sampler.denoise(cache, text, lambda step, n=n: n[None, step])[0] for n in trace["noise"]
            ]
        assert (torch.cat(latents) - trace["latents"]).abs().max() < 1e-2, name
