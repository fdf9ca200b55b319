"""Distilling: what a first chunk sees, gradients under autocast, and how often compiling happens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounter

from tetherflow_backbones.mini.config import TINY
from tetherflow_backbones.mini.train.attention import FirstChunk
from tetherflow_backbones.mini.train.denoiser import Denoiser
from tetherflow_backbones.mini.train.distill import Distilling, DistillStage
from tetherflow_backbones.mini.train.pool import Pool

TOTAL = 8


def _stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Any = None) -> DistillStage:
    torch.manual_seed(0)
    student, teacher = Denoiser(TINY.transformer), Denoiser(TINY.transformer)
    pool = Pool(torch.randn(6, TINY.latent_frames, *TINY.latent).half(), torch.randint(2, 20, (6, 7, 24)))
    how = Distilling(ode_steps=2, own=0.5, first_every=2, first_factor=2)
    stage = DistillStage(student, teacher, TINY, tmp_path, pool, 2, 1e-4, 0, False, backend, how)
    trainer = SimpleNamespace(global_step=0)
    monkeypatch.setattr(DistillStage, "trainer", trainer)
    return stage


def _losses(stage: DistillStage) -> list[float]:
    found = []
    for step in range(TOTAL):
        stage.trainer.global_step = step
        stage.zero_grad()
        loss = stage.training_step(step, step)
        loss.backward()
        found.append(float(loss.detach()))
    return found


@torch.no_grad()
def test_a_first_chunk_alone_equals_one_at_the_start_of_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _stage(tmp_path, monkeypatch)
    clean, ids = stage.pool.draw(2, torch.Generator().manual_seed(0))
    noisy, levels = torch.randn_like(clean), torch.full(clean.shape[:2], 0.7)
    whole = stage.flow(clean, noisy, levels, ids)[:, : TINY.chunk_frames]
    own = slice(0, TINY.chunk_frames)
    alone = stage.network(noisy[:, own], levels[:, own], ids, FirstChunk(stage.turn))
    assert torch.allclose(alone, whole, atol=1e-5)


@torch.no_grad()
def test_guidance_moves_the_endpoint_away_from_the_empty_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One Euler step is linear in the guidance; an empty prompt has nothing to be guided by."""
    stage = _stage(tmp_path, monkeypatch)
    clean, ids = stage.pool.draw(2, torch.Generator().manual_seed(0))
    noisy, levels = torch.randn_like(clean), torch.full(clean.shape[:2], 0.9)

    def endpoint(guidance: float, words: torch.Tensor) -> torch.Tensor:
        stage.how = Distilling(ode_steps=1, guidance=guidance)
        return stage.endpoint(clean, noisy, levels, words)

    empty = torch.zeros_like(ids)
    plain, unprompted = endpoint(1.0, ids), endpoint(1.0, empty)
    torch.testing.assert_close(
        endpoint(3.0, ids), unprompted + 3 * (plain - unprompted), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(endpoint(3.0, empty), unprompted, atol=1e-5, rtol=1e-5)


def test_steps_on_own_samples_train_every_matrix_under_autocast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _stage(tmp_path, monkeypatch)
    stage.how = Distilling(ode_steps=2, own=1.0, first_every=0)
    with torch.autocast("cpu", torch.bfloat16):
        stage.training_step(0, 0).backward()
    still = [name for name, p in stage.network.transformer.named_parameters() if p.grad is None]
    assert still == []


def test_compiled_steps_compute_the_same_from_few_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _losses(_stage(tmp_path, monkeypatch))
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = _losses(_stage(tmp_path, monkeypatch, counter))
    assert compiled == pytest.approx(plain, abs=1e-5)
    # A block and a head for each of: student on clips and on first chunks; frozen on clean clips, noisy
    # clips and first chunks. The student's and the frozen networks' layers share them.
    assert counter.frame_count <= 10
