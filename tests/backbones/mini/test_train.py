"""Every stage of training, at a tiny size, from nothing to files that load; and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tetherflow_backbones.mini import Mini
from tetherflow_backbones.mini.config import TINY
from tetherflow_backbones.mini.text import PAD, UNKNOWN, tokenise
from tetherflow_backbones.mini.train.__main__ import main, parser
from tetherflow_backbones.mini.train.course import Course
from tetherflow_backbones.mini.train.denoiser import STEPS, shifted
from tetherflow_backbones.mini.train.muon import ORTHOGONAL, Muon, orthogonal
from tetherflow_backbones.mini.train.pool import disturbed
from tetherflow_backbones.mini.train.run import Budget
from tetherflow_backbones.mini.weights import load_vae, read_json
from tetherflow_backbones.wan_vae import WanVAE


@pytest.mark.slow
def test_from_nothing_to_files_that_load(tmp_path: Path) -> None:
    few = "--steps 2 --clips 2 --warmup 1 --report-every 1"
    settings = {
        "vae": few,
        "latents": "--clips 4 --batch 3",
        "teacher": few,
        "distill": f"{few} --ode-steps 2",
        "preview": "--count 1 --chunks 8",
    }
    extra = [word for stage, text in settings.items() for word in ("--set", stage, text)]
    command = ["all", "--work", str(tmp_path), "--tiny", "--minutes", "5", "--no-compile", *extra]
    main(command)
    assert len(read_json(tmp_path / "vae.json")["latents_std"]) == TINY.latent[0]
    for stage in ("vae", "teacher", "distill"):
        assert read_json(tmp_path / f"{stage}.record.json")["steps"] == 2
    for model in ("teacher", "student"):
        assert (tmp_path / f"{model}-long.png").read_bytes().startswith(b"\x89PNG")
    mini = Mini(Mini.Options(weights=tmp_path / "weights"), device=torch.device("cpu"))
    assert mini.encode_prompts(["a red circle"]).shape == (1, 24, TINY.transformer.text_dim)

    # A course that was cut off goes on with its own times, and repeats nothing.
    known = read_json(tmp_path / "course.json")
    (tmp_path / "course.json").write_text(json.dumps({**known, "done": known["done"][:-1]}))
    (tmp_path / "student-long.png").unlink()
    before = (tmp_path / "vae.record.json").stat().st_mtime_ns
    main([*command, "--resume"])
    assert (tmp_path / "student-long.png").exists()
    assert (tmp_path / "vae.record.json").stat().st_mtime_ns == before


def test_a_course_shares_its_minutes_among_the_stages(tmp_path: Path) -> None:
    command = [
        "all",
        "--work",
        str(tmp_path),
        "--minutes",
        "24",
        "--devices",
        "4",
        "--set",
        "vae",
        "--rate 1e-3",
    ]
    course = Course.of(parser().parse_args(command))
    plan = course.plan()
    assert list(plan) == ["vae", "latents", "teacher", "distill"]
    assert 20 < sum(plan.values()) < 24
    assert plan["teacher"] > plan["vae"] > plan["distill"] > plan["latents"]
    for stage, minutes in plan.items():
        options = parser().parse_args(course.arguments(stage, minutes))
        assert options.devices == 4
        assert options.minutes == pytest.approx(minutes, abs=1e-3)
    assert parser().parse_args(course.arguments("vae", 1)).rate == 1e-3


def test_orthogonal_steps_have_singular_values_about_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 40), (3, 40, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_muon_goes_on_from_its_state() -> None:
    def trained(
        steps: int, weight: list[torch.Tensor], state: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        groups = [{"params": [weight[0]], ORTHOGONAL: True}, {"params": [weight[1]], ORTHOGONAL: False}]
        optimizer = Muon(groups, lr=0.1, weight_decay=0.0)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            loss = (weight[0] @ weight[1] - torch.eye(4)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return optimizer.state_dict()

    torch.manual_seed(0)
    start = [torch.randn(4, 6), torch.randn(6, 4)]
    once = [w.clone().requires_grad_() for w in start]
    trained(4, once)
    twice = [w.clone().requires_grad_() for w in start]
    trained(2, twice, trained(2, twice))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_the_learning_rate_follows_steps_or_time_whichever_is_nearer_its_end() -> None:
    budget = Budget(steps=1000, minutes=1, warmup=10)
    assert budget.rate(0, 0) == pytest.approx(0.1)
    assert budget.rate(500, 0) == 1
    assert budget.rate(800, 0) == pytest.approx(0.5)
    assert budget.rate(100, 54) == pytest.approx(0.25)
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
    assert 0.06 < empty.float().mean() < 0.14
    assert 0.2 < (out == UNKNOWN).any(dim=1).float().mean() < 0.8
    red = int(tokenise(["red"], 1))
    assert (out[~empty] == red).any(dim=1).float().mean() > 0.95


def test_latents_are_normalised(tiny_work: Path) -> None:
    vae = WanVAE(load_vae(tiny_work))
    latents = torch.randn(1, 4, 2, 4, 4)
    assert torch.allclose(vae.normalise(latents), ((latents - 0.1) / 0.5).transpose(1, 2), atol=1e-5)
