"""Every stage of training, at a tiny size, from nothing to files that load; and resuming."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tetherflow_backbones.mini import Mini
from tetherflow_backbones.mini.config import TINY
from tetherflow_backbones.mini.text import PAD, UNKNOWN, tokenise
from tetherflow_backbones.mini.train.__main__ import main
from tetherflow_backbones.mini.train.denoiser import STEPS, shifted
from tetherflow_backbones.mini.train.pool import disturbed
from tetherflow_backbones.mini.train.run import Budget
from tetherflow_backbones.mini.weights import load_vae, read_json
from tetherflow_backbones.wan_vae import WanVAE


@pytest.mark.slow
def test_from_nothing_to_files_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(stage: str, *options: str) -> None:
        arguments = ["train", stage, "--work", str(tmp_path), "--tiny", *options]
        monkeypatch.setattr(sys, "argv", arguments)
        main()

    few = ("--clips", "2", "--warmup", "1", "--report-every", "1", "--checkpoint-every", "2")
    run("vae", "--steps", "3", *few)
    before = {name: t.clone() for name, t in load_vae(tmp_path).state_dict().items()}
    run("vae", "--steps", "4", "--resume", *few)
    after = load_vae(tmp_path).state_dict()
    assert read_json(tmp_path / "vae.record.json")["steps"] == 4
    assert any(not torch.equal(before[name], after[name]) for name in after)
    statistics = read_json(tmp_path / "vae.json")
    assert len(statistics["latents_std"]) == TINY.latent[0]

    run("latents", "--clips", "4", "--batch", "3")
    run("teacher", "--steps", "2", "--no-compile", *few)
    run("distill", "--steps", "2", "--ode-steps", "2", "--no-compile", *few)
    run("preview", "--count", "1", "--chunks", "8")
    assert (tmp_path / "student-long.png").read_bytes().startswith(b"\x89PNG")
    run("export", "--out", str(tmp_path / "weights"))
    mini = Mini(Mini.Options(weights=tmp_path / "weights"), device=torch.device("cpu"))
    assert mini.encode_prompts(["a red circle"]).shape == (1, 24, TINY.transformer.text_dim)


def test_the_learning_rate_follows_steps_or_time_whichever_is_nearer_its_end() -> None:
    budget = Budget(steps=1000, minutes=1, warmup=10)
    assert budget.rate(0, 0) == pytest.approx(0.1)
    assert budget.rate(500, 0) == pytest.approx(0.5)
    assert budget.rate(100, 45) == pytest.approx(0.25)
    assert budget.progress(5, 70) == 1
    assert Budget(steps=10).progress(5, 1e9) == 0.5


def test_the_samplers_levels_are_the_published_steps_warped() -> None:
    times = torch.tensor([1.0, 0.75, 0.5, 0.25])
    assert torch.allclose(shifted(times, 5.0), torch.tensor(STEPS))


def test_disturbed_words_stay_words() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = tokenise(["a red circle and a blue square bounce on a green field"] * 2000, 24)
    out = disturbed(ids, generator)
    assert out.shape == ids.shape
    empty = (out == PAD).all(dim=1)
    assert 0.01 < empty.float().mean() < 0.08
    assert 0.2 < (out == UNKNOWN).any(dim=1).float().mean() < 0.8
    red = int(tokenise(["red"], 1))
    assert (out == red).any(dim=1).float().mean() > 0.9


def test_latents_are_normalised(tiny_work: Path) -> None:
    vae = WanVAE(load_vae(tiny_work))
    latents = torch.randn(1, 4, 2, 4, 4)
    assert torch.allclose(vae.normalise(latents), ((latents - 0.1) / 0.5).transpose(1, 2), atol=1e-5)
