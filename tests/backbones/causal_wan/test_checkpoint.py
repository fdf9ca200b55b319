"""Loading checkpoints: strictly by name, with an error that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.backbones.causal_wan.models import SMALL, save, transformer
from tests.backbones.published.formats import save_pt, save_sharded
from tetherflow.errors import WeightsError
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer
from tetherflow_backbones.causal_wan.checkpoint import load_transformer


def load(path: Path, arch: Architecture = SMALL, **options: Any) -> CausalWanTransformer:
    settings = {"device": torch.device("cpu"), "dtype": torch.float32} | options
    return load_transformer(path, arch, **settings)


def same(loaded: CausalWanTransformer, model: CausalWanTransformer) -> bool:
    state = model.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_weights_come_back(tmp_path: Path, prefix: str) -> None:
    model = transformer()
    loaded = load(save(model, tmp_path / "w.safetensors", prefix))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert same(loaded, model)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "",
        "model._fsdp_wrapped_module.",
        "_fsdp_wrapped_module.model.",
        "module.",
        "module.model.",
        "model.module.",
    ],
)
@pytest.mark.parametrize("keys", [(), ("generator_ema",), ("generator",)])
def test_training_checkpoints_of_every_layout(tmp_path: Path, prefix: str, keys: tuple[str, ...]) -> None:
    model = transformer()
    assert same(load(save_pt(tmp_path / "w.pt", model.state_dict(), *keys, prefix=prefix)), model)


def test_wrappers_within_names_are_removed(tmp_path: Path) -> None:
    model = transformer()
    state = {
        name.replace("self_attn.", "_fsdp_wrapped_module.self_attn."): t
        for name, t in model.state_dict().items()
    }
    assert same(load(save_pt(tmp_path / "w.pt", state, "generator")), model)


def test_of_two_sets_of_weights_the_average_is_taken_or_the_one_asked_for(tmp_path: Path) -> None:
    average, last = transformer(seed=1), transformer(seed=2)
    path = tmp_path / "w.pt"
    torch.save({"generator": last.state_dict(), "generator_ema": average.state_dict()}, path)
    assert same(load(path), average)
    assert same(load(path, weights="ema"), average)
    assert same(load(path, weights="raw"), last)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    path = save_pt(tmp_path / "w.pt", transformer().state_dict(), "generator")
    with pytest.raises(WeightsError, match=r"w.pt holds generator, not weights 'ema'; use weights: auto"):
        load(path, weights="ema")


@pytest.mark.parametrize("as_folder", [True, False])
def test_sharded_safetensors(tmp_path: Path, as_folder: bool) -> None:
    model = transformer()
    index = save_sharded(tmp_path / "shards", model.state_dict(), 3, "model.")
    assert same(load(index.parent if as_folder else index), model)


def test_weights_are_converted(tmp_path: Path) -> None:
    loaded = load(save(transformer(), tmp_path / "w.safetensors"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dim": 48}, "have another shape: .*, not "),
        ({"ffn_dim": 16}, r"6 have another shape: blocks.0.ffn.0.weight is \[32, 24\], not \[16, 24\]"),
        ({"num_layers": 3}, r"parameters are missing: blocks.2.cross_attn.k.bias, .*, …"),
        ({"num_layers": 1}, r"are unexpected: blocks.1.cross_attn.k.bias"),
        ({"in_dim": 4}, r"patch_embedding.weight is \[24, 3, 1, 2, 2\], not \[24, 4, 1, 2, 2\]"),
        (
            {"num_layers": 1},
            r"looks like Wan's .* num_layers 2, .* \(of no published size\); wanted is .* num_layers 1, ",
        ),
    ],
)
def test_another_architecture(tmp_path: Path, change: dict[str, int], text: str) -> None:
    path = save(transformer(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="holds the weights of another architecture") as caught:
        load(path, attrs.evolve(SMALL, **change))
    assert caught.match(text)


def test_stray_parameter(tmp_path: Path) -> None:
    path = save(transformer(), tmp_path / "w.safetensors")
    save_file({**load_file(path), "model.extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"w.safetensors does not fit: 1 are unexpected: extra. Otherwise"):
        load(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blocks.1.ffn.0.bias", r"1 parameter is missing: blocks.1.ffn.0.bias\."),
        ("blocks.0.ffn.0.weight", r"1 parameter is missing: blocks.0.ffn.0.weight\."),
        ("blocks.1.cross_attn", r"10 parameters are missing: blocks.1.cross_attn.k.bias, .*, …\."),
    ],
)
def test_a_file_that_lacks_parameters_is_incomplete_and_no_other_model(
    tmp_path: Path, name: str, text: str
) -> None:
    state = {key: tensor for key, tensor in transformer().state_dict().items() if name not in key}
    with pytest.raises(WeightsError, match=f"is incomplete: {text} Otherwise .*, as it should") as caught:
        load(save_pt(tmp_path / "w.pt", state))
    assert "another architecture" not in str(caught.value)


def test_one_parameter_under_two_names(tmp_path: Path) -> None:
    path = save(transformer(), tmp_path / "w.safetensors")
    save_file({**load_file(path), "head.modulation": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"holds head.modulation twice, once as"):
        load(path)
