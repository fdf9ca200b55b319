"""The Self-Forcing adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from pydantic import ValidationError

from tests.backbones.causal_wan.models import SMALL, save, transformer
from tetherflow.cache import CacheShape
from tetherflow.errors import WeightsError
from tetherflow.plugins import load_backbone
from tetherflow_backbones.causal_wan.checkpoint import digest
from tetherflow_backbones.self_forcing import SelfForcing, Sizes

CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(transformer(), tmp_path / "weights.safetensors")


def options(weights: Path, **changes: Any) -> SelfForcing.Options:
    settings = {"transformer": weights, "architecture": attrs.asdict(SMALL), "latent_size": (4, 6)}
    return SelfForcing.Options.model_validate(settings | changes)


def test_registered_by_its_entry_point() -> None:
    assert load_backbone("self-forcing") is SelfForcing


def test_shapes_follow_from_the_options(weights: Path) -> None:
    backbone = SelfForcing(options(weights), device=CPU)
    assert backbone.cache_shape == CacheShape(layers=2, heads=2, head_dim=12, tokens=6, rows=2)
    assert backbone.latent_shape == (3, 4, 6)
    assert backbone.rotary.grid == (2, 3)
    assert backbone.fps == 16


def test_defaults_are_the_published_models() -> None:
    defaults = SelfForcing.Options(transformer=Path("x"))
    assert defaults.steps == (1000, 750, 500, 250)
    assert (defaults.shift, defaults.context_timestep, defaults.chunk_frames) == (5.0, 0.0, 3)
    assert defaults.latent_size == (60, 104)
    assert (defaults.architecture.dim, defaults.architecture.num_layers, defaults.architecture.num_heads) == (
        1536,
        30,
        12,
    )


def test_sampler_follows_the_options(weights: Path) -> None:
    backbone = SelfForcing(
        options(weights, steps=[1000, 500], shift=3.0, context_timestep=20, chunk_frames=2), device=CPU
    )
    assert backbone.sampler.steps == (1000, 500)
    assert backbone.sampler.shift == 3.0
    assert backbone.sampler.context_timestep == 20
    assert backbone.sampler.chunk_frames == 2


def test_parity_keeps_the_published_order_of_operations(weights: Path) -> None:
    parity, fast = (SelfForcing(options(weights), device=CPU, parity=parity) for parity in (True, False))
    assert parity.rotary.precision == torch.float64
    assert fast.rotary.precision == torch.float32
    assert parity.transformer.blocks[0].self_attn.qkv is None
    assert fast.transformer.blocks[0].self_attn.qkv is not None


def test_weights_are_identified_by_their_hash(weights: Path) -> None:
    assert SelfForcing(options(weights), device=CPU).weights_digest() == digest([weights])


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights are missing"):
        SelfForcing(options(tmp_path / "none.safetensors"), device=CPU)


def test_weights_of_another_architecture(weights: Path) -> None:
    sizes = attrs.asdict(SMALL) | {"ffn_dim": 64}
    with pytest.raises(WeightsError, match="another architecture"):
        SelfForcing(options(weights, architecture=sizes), device=CPU)


def test_what_is_not_attached_says_so(weights: Path) -> None:
    backbone = SelfForcing(options(weights), device=CPU)
    with pytest.raises(WeightsError, match="no text encoder attached"):
        backbone.encode_prompts(["a red circle"])
    with pytest.raises(WeightsError, match="no video autoencoder attached; it generates latents only"):
        backbone.decoder()
    with pytest.raises(WeightsError, match="no video autoencoder attached; it takes latents only"):
        backbone.encode_video(torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architecture": {"dim": 25, "num_heads": 2}}, "dim 25 does not split into 2 heads"),
        ({"architecture": {"patch_size": (2, 2, 2)}}, "a token must lie within one latent frame"),
        ({"architecture": {"num_layers": 0}}, "num_layers"),
        ({"architecture": {"layers": 3}}, "layers"),
        ({"latent_size": (5, 6)}, "a latent frame of 5x6 does not split into 2x2 patches"),
        ({"latent_size": (0, 6)}, "latent_size"),
        ({"steps": []}, "steps"),
        ({"steps": [1001]}, "steps"),
        ({"steps": [0]}, "steps"),
        ({"shift": 0}, "shift"),
        ({"context_timestep": -1}, "context_timestep"),
        ({"chunk_frames": 0}, "chunk_frames"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_options_out_of_range_are_refused(weights: Path, changes: dict[str, Any], text: str) -> None:
    """As errors of validation, so that a recipe's reader can say where in the file they stand."""
    with pytest.raises(ValidationError, match=text):
        options(weights, **changes)


def test_sizes_are_the_architectures() -> None:
    assert attrs.asdict(Sizes().architecture()) == Sizes().model_dump()
