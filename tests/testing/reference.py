"""A plain, slow rollout that records golden traces of its own: the naive oracle in the engine's place.

Shares nothing with the engine, the sampler or the schedule; of the package it uses the transformer alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.backbones.causal_wan.models import save, transformer
from tests.cache import oracle as naive
from tests.cache.oracle import Cell, Frame, Oracle, Rules
from tetherflow import Layout
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer

CLEAR = 4e-5
"""Every selection must be decided by this margin, so that rounding cannot flip one."""


@attrs.frozen
class Model:
    """What a folder of traces is recorded from.

    Attributes:
        arch: the transformer's sizes.
        latent_hw: rows and columns of a latent frame.
        chunk_frames: latent frames a chunk.
        steps: denoising steps among 1000.
        shift: time shift.
        context_timestep: timestep of the context pass.
        seed: of the weights.
    """

    arch: Architecture
    latent_hw: tuple[int, int]
    chunk_frames: int = 3
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    context_timestep: float = 0
    seed: int = 0

    @property
    def levels(self) -> list[float]:
        """σ of each pass: 5u / (1 + 4u) for a shift of 5."""
        shares = (step / 1000 for step in self.steps)
        return [self.shift * u / (1 + (self.shift - 1) * u) for u in shares]

    @property
    def times(self) -> list[float]:
        """What the transformer is told in each pass, rounded to float32 as it takes it."""
        return [float(torch.tensor(1000 * level)) for level in self.levels]

    def transformer(self) -> CausalWanTransformer:
        return transformer(self.arch, self.seed, spread=1.0)


@attrs.frozen
class Policy:
    """A trace's settings, as `golden.json` spells them; without alpha it is FIFO at absolute positions."""

    budget: int
    sink: int
    recent: int
    chunks: int
    alpha: float | None = None
    tau: float | None = None
    score_temperature: float = 1.0

    @property
    def recalls(self) -> bool:
        return self.alpha is not None

    @property
    def layout(self) -> Layout:
        recent = self.recent if self.recalls else self.budget - self.sink
        return Layout(self.sink, self.budget - self.sink - recent, recent)

    def rules(self, note: Callable[[float], None]) -> Rules:
        """The policy in the oracle's terms; `note` is told the margin of every selection."""
        if self.alpha is None:
            return Rules(naive.evict_oldest)
        alpha, tau = self.alpha, self.tau or 0.0

        def choose(cell: Cell, candidates: list[Frame], query: Tensor) -> list[int]:
            scores = naive.grab(candidates, query, self.score_temperature, alpha)
            note(naive.margin(scores, cell.layout.memory))
            return naive.top(scores, cell.layout.memory)

        return Rules(naive.evict_recent, choose, lambda cell, frame, trusted: naive.tame(frame, trusted, tau))


def record(model: Model, policy: Policy, seed: int) -> tuple[dict[str, Tensor], float]:
    """One rollout's trace, and the smallest margin of its selections."""
    generator = torch.Generator().manual_seed(seed)
    network = model.transformer()
    arch = model.arch
    frame = (arch.in_dim, *model.latent_hw)
    context = torch.randn(arch.text_len, arch.text_dim, generator=generator)
    noise = torch.randn(policy.chunks, len(model.steps), model.chunk_frames, *frame, generator=generator)
    margins = [math.inf]
    cache = Oracle(
        arch.num_layers,
        1,
        policy.layout,
        "block-relative" if policy.recalls else "absolute",
        arch.grid(*model.latent_hw),
        policy.rules(margins.append),
    )
    text = network.prepare_text(context[None])

    def predict(latents: Tensor, timestep: float) -> Tensor:
        return network(latents[None], torch.full((1, len(latents)), timestep), text, cache)[0]

    latents, flows, memory = [], [], []
    for chunk in noise:
        cache.begin(model.chunk_frames)
        chunk_flows = []
        noisy = chunk[0]
        for step, (level, time) in enumerate(zip(model.levels, model.times, strict=True)):
            flow = predict(noisy, time)
            chunk_flows.append(flow)
            result = (noisy.double() - level * flow.double()).float()
            if step + 1 < len(model.levels):
                after = model.levels[step + 1]
                noisy = (1 - after) * result + after * chunk[step + 1]
        cache.commit()
        chunk_flows.append(predict(result, model.context_timestep))
        cache.end()
        latents.append(result)
        flows.append(torch.stack(chunk_flows))
        memory.append([memory_of(cells[0]) for cells in cache.cells])
    trace = {
        "context": context,
        "noise": noise,
        "flow": torch.stack(flows),
        "latents": torch.cat(latents),
    }
    if policy.recalls:
        trace["memory_frames"] = torch.tensor(memory)
        for name, part in (("final_k", "key"), ("final_v", "value")):
            layers = [torch.cat([getattr(held, part) for held in cells[0].frames]) for cells in cache.cells]
            trace[name] = torch.stack(layers).float()
    return trace, min(margins)


def memory_of(cell: Cell) -> list[int]:
    """Origins of the memory region; −1 before the cache is full."""
    layout = cell.layout
    if len(cell.frames) < layout.budget:
        return [-1] * layout.memory
    return cell.origins[layout.sink : layout.sink + layout.memory]


def write_folder(folder: Path, model: Model, policies: dict[str, Policy]) -> Path:
    """Record a trace a policy into a folder in the format of golden traces."""
    folder.mkdir(parents=True, exist_ok=True)
    save(model.transformer(), folder / "weights.safetensors")
    traces = {}
    for name, policy in policies.items():
        seed = 0
        trace, margin = record(model, policy, seed)
        while margin < CLEAR:
            seed += 1
            trace, margin = record(model, policy, seed)
        save_file({key: tensor.contiguous() for key, tensor in trace.items()}, folder / f"{name}.safetensors")
        traces[name] = attrs.asdict(policy) | {"latent_abs_mean": float(trace["latents"].abs().mean())}
    rows, columns = model.arch.grid(*model.latent_hw)
    golden: dict[str, Any] = {
        "arch": attrs.asdict(model.arch),
        "latent_hw": model.latent_hw,
        "tokens_per_frame": rows * columns,
        "chunk_frames": model.chunk_frames,
        "timestep_shift": model.shift,
        "denoising_steps": model.steps,
        "warped_timesteps": model.times,
        "context_timestep": model.context_timestep,
        "traces": traces,
    }
    (folder / "golden.json").write_text(json.dumps(golden, indent=1))
    return folder
