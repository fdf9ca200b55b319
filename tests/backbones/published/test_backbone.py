"""Backbones of published weights, on small ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.backbones.causal_wan.models import transformer
from tests.backbones.causal_wan.test_lora import RANK
from tests.backbones.published.formats import save_pt, save_sharded, save_tokenizer, vae
from tests.backbones.published.models import ARCH, LATENT, SETTINGS, save_model
from tetherflow.cache import CacheShape
from tetherflow.errors import WeightsError
from tetherflow_backbones.longlive import LongLive
from tetherflow_backbones.published import PublishedWan
from tetherflow_backbones.published.backbone import TEXT_ENCODER
from tetherflow_backbones.self_forcing import SelfForcing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("weights"), SelfForcing.transformer_file)


def options(folder: Path | None, **changes: Any) -> SelfForcing.Options:
    return SelfForcing.Options.model_validate({"folder": folder} | SETTINGS | changes)


def load(folder: Path | None, parity: bool = False, **changes: Any) -> SelfForcing:
    return SelfForcing(options(folder, **changes), device=CPU, parity=parity)


def test_everything_is_found_in_the_folder(folder: Path) -> None:
    backbone = load(folder)
    assert backbone.cache_shape == CacheShape(layers=2, heads=2, head_dim=12, tokens=4, rows=2)
    assert backbone.latent_shape == (16, *LATENT)
    assert backbone.rotary.grid == (2, 2)
    assert backbone.fps == 16
    context = backbone.encode_prompts(["a red circle", "blue"])
    assert context.shape == (2, ARCH.text_len, ARCH.text_dim)
    assert not context[1, 2:].any()
    frames = backbone.decoder()(torch.randn(2, 3, *backbone.latent_shape))
    assert frames.shape == (2, 9, 3, 32, 32)
    assert backbone.encoder()(frames).shape == (2, 3, *backbone.latent_shape)


def test_the_usual_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHERFLOW_WEIGHTS", str(folder))
    assert load(None).encode_prompts(["red"]).any()


def test_named_files_come_first(folder: Path, tmp_path: Path) -> None:
    other = transformer(ARCH, seed=9)
    sharded = save_sharded(tmp_path / "transformer", other.state_dict(), 2)
    vae(seed=5).save_pretrained(tmp_path / "vae")
    backbone = load(folder, transformer=sharded.parent, vae=tmp_path / "vae", parity=True)
    weight = backbone.transformer.state_dict()["blocks.1.ffn.0.weight"]
    assert torch.equal(weight, other.state_dict()["blocks.1.ffn.0.weight"])
    latents = torch.randn(1, 1, *backbone.latent_shape)
    assert not torch.equal(backbone.decoder()(latents), load(folder).decoder()(latents))


def test_parity_keeps_the_published_order_of_operations(folder: Path) -> None:
    parity, fast = load(folder, parity=True), load(folder)
    assert parity.rotary.precision == torch.float64
    assert fast.rotary.precision == torch.float32
    assert parity.transformer.blocks[0].self_attn.qkv is None
    assert fast.transformer.blocks[0].self_attn.qkv is not None


def test_types_follow_the_transformers(folder: Path) -> None:
    backbone = SelfForcing(options(folder, vae_precision="float32"), device=CPU, dtype=torch.bfloat16)
    assert backbone.encode_prompts(["red"]).dtype == torch.bfloat16
    assert {p.dtype for p in backbone.transformer.parameters()} == {torch.bfloat16}
    frames = backbone.decoder()(torch.zeros(1, 1, *backbone.latent_shape))
    assert frames.dtype == torch.uint8


def test_sampler_follows_the_options(folder: Path) -> None:
    sampler = load(
        folder, steps=[1000, 500], shift=3.0, warp=False, context_timestep=20, chunk_frames=2
    ).sampler
    assert (sampler.steps, sampler.shift, sampler.warp) == ((1000, 500), 3.0, False)
    assert (sampler.context_timestep, sampler.chunk_frames) == (20, 2)


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "tokenizer", "vae"])
def test_a_missing_part_says_how_to_get_it(folder: Path, tmp_path: Path, part: str) -> None:
    """Only what is used is needed: embeddings and latents of one's own need no other part."""
    with pytest.raises(WeightsError, match=r"nowhere does not exist; check the path"):
        use(load(folder, **{part: tmp_path / "nowhere"}), part)
    if part != "transformer":
        alone = save_pt(tmp_path / "t.pt", transformer(ARCH).state_dict())
        encoder = {"text_encoder": folder / TEXT_ENCODER} if part == "tokenizer" else {}
        with pytest.raises(
            WeightsError, match=rf"run `tetherflow fetch self-forcing`, or .* backbone.{part}, or"
        ):
            use(load(tmp_path, transformer=alone, **encoder), part)


def use(backbone: PublishedWan, part: str) -> None:
    if part == "vae":
        backbone.decoder()
    elif part != "transformer":
        backbone.encode_prompts(["red"])


ADAPTED = "blocks.0.ffn.0"


def adapter(rank: int) -> dict[str, Tensor]:
    """An adapter of one layer, all ones: merged, it adds α to each weight."""
    out, inner = transformer(ARCH).state_dict()[f"{ADAPTED}.weight"].shape
    return {
        f"base_model.model.{ADAPTED}.lora_A.weight": torch.ones(rank, inner),
        f"base_model.model.{ADAPTED}.lora_B.weight": torch.ones(out, rank),
    }


def added(backbone: PublishedWan) -> float:
    """What merging added to each weight of the adapted layer."""
    name = f"{ADAPTED}.weight"
    change = backbone.transformer.state_dict()[name] - transformer(ARCH).state_dict()[name]
    torch.testing.assert_close(change, change.mean().expand_as(change))
    return round(change.mean().item(), 3)


@pytest.mark.parametrize(("named", "wanted"), [({}, 1.0), ({"lora_alpha": 4}, 4.0)])
def test_a_users_adapter_is_as_strong_as_it_was_trained(
    folder: Path, tmp_path: Path, named: dict[str, float], wanted: float
) -> None:
    torch.save(adapter(rank=1), tmp_path / "lora.pt")
    assert added(load(folder, lora=tmp_path / "lora.pt", **named)) == wanted


def test_longlive_merges_its_own_adapter_into_its_own_transformer_alone(tmp_path: Path) -> None:
    save_model(tmp_path, LongLive.transformer_file, "generator")
    merged = save_pt(tmp_path / "merged.pt", transformer(ARCH).state_dict())
    torch.save(adapter(rank=1), tmp_path / "mine.pt")

    def longlive(**changes: Path) -> LongLive:
        settings = {"folder": tmp_path} | SETTINGS | changes
        return LongLive(LongLive.Options.model_validate(settings), device=CPU)

    with pytest.raises(WeightsError, match="fetch longlive"):
        longlive()
    assert added(longlive(transformer=merged)) == 0  # and its own adapter need not be there
    torch.save({"generator_lora": adapter(RANK)}, tmp_path / str(LongLive.lora_file))
    assert added(longlive()) == 256
    assert added(longlive(transformer=merged)) == 0
    assert added(longlive(transformer=merged, lora=tmp_path / "mine.pt")) == 1
    assert added(longlive(lora=tmp_path / "mine.pt")) == 1
    assert longlive(transformer=merged).weights_digest() != longlive().weights_digest()


def test_weights_are_identified_by_all_their_files(folder: Path, tmp_path: Path) -> None:
    backbone = load(folder)
    before = backbone.weights_digest()
    assert len(before) == 64
    alone = save_pt(tmp_path / "t.pt", transformer(ARCH).state_dict())
    content = bytes.fromhex(hashlib.sha256(alone.read_bytes()).hexdigest())
    assert load(tmp_path, transformer=alone).weights_digest() == hashlib.sha256(content).hexdigest()
    assert load(folder, transformer=alone).weights_digest() not in (
        before,
        load(tmp_path, transformer=alone).weights_digest(),
    )
    other = save_tokenizer(tmp_path / "tokenizer.json")
    other.write_text(other.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert load(folder, tokenizer=tmp_path).weights_digest() != before


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
        ({"weights": "best"}, "weights"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"vae_precision": "float8"}, "vae_precision"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], text: str) -> None:
    """As errors of validation, so that a recipe's reader can say where in the file they stand."""
    with pytest.raises(ValidationError, match=text):
        options(None, **changes)
