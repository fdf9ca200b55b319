"""Random weights of Wan's shapes: they roll out, stay finite, and cost what the real ones cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.videos import read_video
from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import open_session
from tetherflow.rollout.run import run_recipe
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer
from tetherflow_backbones.synthetic import Synthetic

CPU = torch.device("cpu")
TINY = {
    "dim": 48,
    "ffn_dim": 64,
    "heads": 2,
    "layers": 2,
    "text_len": 8,
    "latent_size": [4, 6],
    "vae_width": 4,
}
OVERRIDES = ["backbone.use=synthetic", *(f"backbone.{key}={value}" for key, value in TINY.items())]


def test_defaults_are_the_shapes_of_wan_1_3b() -> None:
    options = Synthetic.Options()
    wan = Architecture()
    assert (options.dim, options.ffn_dim) == (wan.dim, wan.ffn_dim)
    assert (options.heads, options.layers, options.text_len) == (wan.num_heads, wan.num_layers, wan.text_len)


def test_steps_are_the_recipes() -> None:
    for changes, steps in (([], (1000, 750, 500, 250)), (["backbone.steps=[1000, 500]"], (1000, 500))):
        assert open_session(load_recipe("tethercache", [*OVERRIDES, *changes]), CPU).settings.steps == steps


def test_weights_are_the_seeds() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        backbone = Synthetic(Synthetic.Options(**TINY, seed=seed), device=CPU)  # type: ignore[arg-type]
        assert isinstance(backbone.transformer, CausalWanTransformer)
        return backbone.transformer.state_dict()

    one, same, other = state(1), state(1), state(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.ffn.0.weight"], other["blocks.0.ffn.0.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rollout_stays_finite(dtype: str) -> None:
    session = open_session(load_recipe("tethercache", [*OVERRIDES, f"runtime.precision={dtype}"]), CPU)
    for chunk in session.stream(["a"], latent_frames=30, seeds=[0], decode=False):
        assert bool(chunk.latents.isfinite().all())
        assert 0.1 < float(chunk.latents.std()) < 10


def test_prompt_to_mp4(tmp_path: Path) -> None:
    changes = ["rollout.latent_frames=4", f"output.folder='{tmp_path}'"]
    (video,) = run_recipe(load_recipe("tethercache", [*OVERRIDES, *changes])).videos
    assert video.file is not None
    (path,) = tmp_path.glob("*/videos/*.mp4")
    assert read_video(path).shape == (13, 3, 32, 48)


def test_video_can_be_given() -> None:
    backbone = Synthetic(Synthetic.Options(**TINY), device=CPU)  # type: ignore[arg-type]
    frames = torch.randint(0, 256, (1, 5, 3, 32, 48), dtype=torch.uint8)
    assert backbone.encoder()(frames).shape == (1, 2, 16, 4, 6)
