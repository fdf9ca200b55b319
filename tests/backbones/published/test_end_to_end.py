"""From a prompt to an mp4 on small models in the published formats, as a user does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import yaml

from tests.backbones.causal_wan.models import transformer
from tests.backbones.published.formats import save_sharded, umt5, vae
from tests.backbones.published.models import ARCH, SETTINGS, save_model
from tests.cli.test_commands import call
from tetherflow.plugins import load_backbone
from tetherflow.recipe import advice_on, bundled_recipes, layout_of, load_recipe
from tetherflow_backbones.published import PublishedWan

RECIPES = [
    "self-forcing", "self-forcing-tethercache", "causvid", "causal-forcing", "longlive-1.3b",
    "reward-forcing", "krea-realtime",
]  # fmt: skip
LENGTH = 25
"""Latent frames: a full window and evictions from it."""


def checkpoint(recipe: str) -> type[PublishedWan]:
    cls = load_backbone(load_recipe(recipe).backbone.use)
    assert issubclass(cls, PublishedWan)
    return cls


def shrink(recipe: str, folder: Path, **backbone: Any) -> Path:
    """The recipe as it ships, on a small model in a folder."""
    content = {
        "extends": recipe,
        "backbone": {"folder": str(folder)} | SETTINGS | {"latent_size": [4, 4]} | backbone,
        "rollout": {
            "latent_frames": LENGTH,
            "prompts": ["a red circle", "a blue &amp; red square"],
        },
        "runtime": {"threads": 1},
    }
    path = folder / f"{recipe}-small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(path: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """Run a recipe by the command line; returns its videos."""
    assert call("run", str(path), "--output", str(output)) == 0
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    return [Path(line) for line in printed.out.splitlines()]


def frames_of(video: Path) -> list[torch.Tensor]:
    with av.open(str(video)) as container:
        return [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_from_prompts_to_videos(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cls = checkpoint(recipe)
    save_model(tmp_path, cls.transformer_file, "generator")
    if cls.lora_file is not None:
        shape = transformer(ARCH).state_dict()["blocks.0.ffn.0.weight"].shape
        factors = {"A": torch.full((1, shape[1]), 0.01), "B": torch.full((shape[0], 1), 0.01)}
        lora = {f"base_model.model.blocks.0.ffn.0.lora_{n}.weight": factor for n, factor in factors.items()}
        (tmp_path / cls.lora_file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"generator_lora": lora}, tmp_path / cls.lora_file)
    one, two = run(shrink(recipe, tmp_path), tmp_path / "runs", capsys)
    shown, other = frames_of(one), frames_of(two)
    assert len(shown) == len(other) == 1 + 4 * (LENGTH - 1)
    assert shown[0].shape == (32, 32, 3)
    assert not torch.equal(shown[-1], shown[0])
    assert not all(torch.equal(a, b) for a, b in zip(shown, other, strict=True))
    lock = json.loads((one.parent.parent / "lock.json").read_text())
    assert lock["plugins"][cls.checkpoint]["distribution"] == "tetherflow"
    assert len(lock["weights_sha256"]) == 64


def test_every_layout_gives_the_same_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wan2.1's own files here; there sharded safetensors, transformers' and diffusers' folders."""
    cls = checkpoint("self-forcing")
    save_model(tmp_path / "a", cls.transformer_file)
    save_model(tmp_path / "b", cls.transformer_file)
    named = {
        "transformer": str(save_sharded(tmp_path / "t", transformer(ARCH).state_dict(), 3, "model.").parent),
        "text_encoder": str(tmp_path / "text_encoder"),
        "vae": str(tmp_path / "vae"),
    }
    umt5().save_pretrained(named["text_encoder"], max_shard_size="4KB")
    vae().save_pretrained(named["vae"])
    (plain, _), (other, _) = (
        run(shrink("self-forcing", tmp_path / side, **options), tmp_path / "runs" / side, capsys)
        for side, options in (("a", {}), ("b", named))
    )
    assert plain.read_bytes() == other.read_bytes()


def test_a_recipe_against_the_checkpoints_training_runs_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = checkpoint("longlive-1.3b")
    save_model(tmp_path, cls.transformer_file, "generator")
    path = shrink("self-forcing-tethercache", tmp_path, use="longlive", weights="raw")
    assert call("check", str(path)) == 0
    assert "warning: longlive was trained with the policy longlive or sink-window" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["longlive", "longlive-switch"])
def test_longlives_weights_know_longlives_policy(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", recipe, "--set", "backbone.use=longlive") == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_shipped_recipes_suit_their_checkpoints(recipe: str) -> None:
    """Each ships with the window, sink and positions of its training, and earns no warning."""
    loaded, training = load_recipe(recipe), checkpoint(recipe).training
    assert advice_on(loaded) == []
    assert loaded.cache.budget == training.window
    if training.policies:
        layout = layout_of(loaded)
        assert (layout.sink, layout.bank) == (training.sink, training.bank)
        assert loaded.cache.positions == training.positions


def test_every_checkpoint_that_has_its_policy_ships_with_a_recipe() -> None:
    shipped = {load_recipe(name).backbone.use for name in bundled_recipes()}
    assert shipped >= {checkpoint(recipe).checkpoint for recipe in RECIPES}
