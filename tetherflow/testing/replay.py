"""Replays recorded rollouts ("golden traces") through the engine and compares every latent and flow.

A folder holds `golden.json` (architecture, schedule and each trace's policy settings), `weights.safetensors`
(the transformer, under the published names) and one `<trace>.safetensors` a trace, with `context`, `noise`,
`flow`, `latents` and, for policies that recall, `memory_frames`, `final_k` and `final_v`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tetherflow.backbone import Backbone
from tetherflow.cache import CacheEngine, Layout, Positions
from tetherflow.errors import TetherflowError
from tetherflow.pipeline import Pipeline
from tetherflow.plugins import load_backbone, load_stage
from tetherflow.rollout.sampler import Sampler
from tetherflow.rollout.schedule import Schedule

Numerics = Literal["parity", "fast"]

TOLERANCE: dict[Numerics, float] = {"parity": 1e-4, "fast": 1e-3}
"""Largest difference of a latent or flow that passes, in float32, by mode."""


class ReplayError(TetherflowError):
    """A folder is no set of golden traces."""


@attrs.frozen
class Replay:
    """How one trace's replay compares with its recording.

    Attributes:
        name: the trace.
        latents: largest absolute difference of a latent.
        flows: largest absolute difference of a flow.
        cache: largest absolute difference of the final keys and values; 0 if they were not recorded.
        memory: whether every recalled frame is the same; true if none was recorded.
        tolerance: largest difference that passes.
    """

    name: str
    latents: float
    flows: float
    cache: float
    memory: bool
    tolerance: float

    @property
    def error(self) -> float:
        """The largest difference; not a number if any is not."""
        return _largest(self.latents, self.flows, self.cache)

    @property
    def passed(self) -> bool:
        """Whether the replay agrees with the recording; a difference that is not a number does not."""
        return self.memory and self.error <= self.tolerance


def replay_folder(
    folder: Path, numerics: Numerics = "parity", tolerance: float | None = None
) -> Iterator[Replay]:
    """Replay every trace of a folder, in the order of its `golden.json`.

    Args:
        folder: a folder in the format above.
        numerics: `parity` follows the reference's order of operations; `fast` is the default of rollouts.
        tolerance: largest difference that passes; by default the mode's.

    Raises:
        ReplayError: The folder is incomplete or not in the format.
    """
    golden = _read_golden(folder)
    limit = TOLERANCE[numerics] if tolerance is None else tolerance
    backbone_class = load_backbone("self-forcing")
    try:
        options = backbone_class.Options.model_validate(
            {
                "transformer": folder / "weights.safetensors",
                "architecture": golden["arch"],
                "latent_size": golden["latent_hw"],
                "steps": golden["denoising_steps"],
                "shift": golden["timestep_shift"],
                "context_timestep": golden["context_timestep"],
                "chunk_frames": golden["chunk_frames"],
            }
        )
    except ValidationError as error:
        raise ReplayError(f"{folder / 'golden.json'} does not describe a transformer: {error}") from error
    backbone = backbone_class(options, device=torch.device("cpu"), parity=numerics == "parity")
    # The recorded times, where there are any: recomputing them may round the last bit otherwise.
    times = golden.get("warped_timesteps")
    schedule = Schedule.at(times, golden["timestep_shift"]) if times else Schedule.of(backbone.sampler)
    for name, settings in golden["traces"].items():
        yield replay_trace(backbone, schedule, name, settings, _read_trace(folder, name), limit)


@torch.inference_mode()
def replay_trace(
    backbone: Backbone,
    schedule: Schedule,
    name: str,
    settings: dict[str, Any],
    trace: dict[str, Tensor],
    tolerance: float,
) -> Replay:
    """Replay one trace.

    Args:
        backbone: the model that it was recorded from.
        schedule: timesteps and noise levels of its passes.
        name: the trace's name.
        settings: its entry in `golden.json`.
        trace: its tensors.
        tolerance: largest difference that passes.
    """
    pipeline, layout, positions = build_policy(settings)
    cache = CacheEngine(
        backbone.cache_shape, layout, pipeline, backbone.rotary, positions=positions, strict=True
    )
    sampler = Sampler(backbone.transformer, schedule, backbone.sampler.context_timestep, torch.float32)
    frame = (len(schedule.sigmas), backbone.sampler.chunk_frames, *backbone.latent_shape)
    if trace["noise"].shape[1:] != frame or not len(trace["noise"]):
        raise ReplayError(
            f"trace '{name}' has noise {list(trace['noise'].shape)}; "
            f"this model takes [chunks, {str(list(frame))[1:]}"
        )
    text = backbone.transformer.prepare_text(trace["context"][None])
    latents, flows, memory = [], [], []
    for noise in trace["noise"]:
        chunk_flows: list[Tensor] = []
        latents.append(
            sampler.denoise(
                cache,
                text,
                lambda step, noise=noise: noise[None, step],  # type: ignore[misc]
                lambda _, flow, into=chunk_flows: into.append(flow[0]),  # type: ignore[misc]
            )[0]
        )
        flows.append(torch.stack(chunk_flows))
        memory.append(cache.memory_origins()[:, 0])
    cache_error = 0.0
    if "final_k" in trace:
        for layer in range(backbone.cache_shape.layers):
            keys, values = cache.contents(layer)
            cache_error = _largest(
                cache_error,
                _difference(keys[0].flatten(0, 1), trace["final_k"][layer]),
                _difference(values[0].flatten(0, 1), trace["final_v"][layer]),
            )
    return Replay(
        name=name,
        latents=_difference(torch.cat(latents), trace["latents"]),
        flows=_difference(torch.stack(flows), trace["flow"]),
        cache=cache_error,
        memory="memory_frames" not in trace or torch.equal(torch.stack(memory), trace["memory_frames"]),
        tolerance=tolerance,
    )


def build_policy(settings: dict[str, Any]) -> tuple[Pipeline, Layout, Positions]:
    """The pipeline, regions and key positions that a trace's settings stand for.

    Traces without `alpha` are FIFO at absolute positions, with or without a sink; the others are TetherCache.
    """
    budget, sink, recent = settings["budget"], settings["sink"], settings["recent"]
    if settings.get("alpha") is None:
        name = "sink-window" if sink else "sliding-window"
        return Pipeline(load_stage(name, "evict")(name=name)), Layout(sink, 0, budget - sink), "absolute"  # type: ignore[arg-type]

    def stage(name: str, kind: Any, **options: float) -> Any:
        cls = load_stage(name, kind)
        return cls(cls.Options.model_validate(options), name=name)

    pipeline = Pipeline(
        evict=stage("recall-window", "evict"),
        score=[
            stage("relevance", "score", temperature=settings.get("score_temperature", 1.0)),
            stage("temporal-diversity", "score", alpha=settings["alpha"]),
        ],
        select=stage("top-m", "select"),
        edit=[stage("tame", "edit", tau=settings.get("tau") or 0.0)],
    )
    return pipeline, Layout(sink, budget - sink - recent, recent), "block-relative"


def _largest(*differences: float) -> float:
    """The largest of some differences; max() would drop what is not a number, depending on the order."""
    return float(torch.tensor(differences, dtype=torch.float64).max())


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        raise ReplayError(f"the trace has {list(expected.shape)} where the replay has {list(found.shape)}")
    return float((found - expected).abs().max())


def _read_golden(folder: Path) -> dict[str, Any]:
    path = folder / "golden.json"
    try:
        found: object = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReplayError(f"{path} cannot be read ({error}); a folder of golden traces holds one") from error
    golden: dict[str, Any] = found if isinstance(found, dict) else {}
    wanted = (
        "arch",
        "latent_hw",
        "chunk_frames",
        "timestep_shift",
        "denoising_steps",
        "context_timestep",
        "traces",
    )
    if missing := [key for key in wanted if key not in golden]:
        raise ReplayError(f"{path} lacks {', '.join(missing)}")
    for name, settings in golden["traces"].items():
        if missing := [key for key in ("budget", "sink", "recent") if key not in settings]:
            raise ReplayError(f"{path}: trace '{name}' lacks {', '.join(missing)}")
    return golden


def _read_trace(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    try:
        trace = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ReplayError(f"{path} cannot be read: {error}") from error
    if missing := [key for key in ("context", "noise", "flow", "latents") if key not in trace]:
        raise ReplayError(f"{path} lacks {', '.join(missing)}")
    return trace
