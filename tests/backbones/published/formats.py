"""Small random models, written in the formats in which the real ones are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

State = Mapping[str, Tensor]
WORDS = ["a", "red", "blue", "circle", "square", "bounces", "on", "green", "field", "&"]


def randomise(model: nn.Module, seed: int, spread: float = 1.0) -> nn.Module:
    """Draw every parameter at random, scaled by its inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "gamma" in name:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(spread * noise / max(1, parameter[0].numel()) ** 0.5)
    return model.eval().requires_grad_(False)


def save_pt(path: Path, state: State, *keys: str, prefix: str = "model.") -> Path:
    """A training run's checkpoint: the state under `keys`, each name with a prefix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {prefix + name: tensor for name, tensor in state.items()}
    content = dict.fromkeys(keys, named) if keys else named
    torch.save({**content, "critic": {"weight": torch.zeros(1)}} if keys else content, path)
    return path


def save_sharded(folder: Path, state: State, shards: int, prefix: str = "") -> Path:
    """Sharded safetensors with an index, as diffusers and transformers write them."""
    folder.mkdir(parents=True, exist_ok=True)
    names, where = sorted(state), {}
    for number in range(shards):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {prefix + name: state[name].contiguous() for name in names[number::shards]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def umt5(width: int = 12, seed: int = 0) -> UMT5EncoderModel:
    """A UMT5 encoder of two layers."""
    config = UMT5Config(
        vocab_size=32, d_model=width, d_kv=4, d_ff=20, num_layers=2, num_heads=2,
        relative_attention_num_buckets=8,
    )  # fmt: skip
    return randomise(UMT5EncoderModel(config), seed, spread=2.0)


def umt5_original(model: UMT5EncoderModel) -> dict[str, Tensor]:
    """An encoder's tensors as `models_t5_umt5-xxl-enc-bf16.pth` names them."""
    parts = {
        "norm1": "layer.0.layer_norm", "norm2": "layer.1.layer_norm",
        "attn.q": "layer.0.SelfAttention.q", "attn.k": "layer.0.SelfAttention.k",
        "attn.v": "layer.0.SelfAttention.v", "attn.o": "layer.0.SelfAttention.o",
        "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
        "ffn.gate.0": "layer.1.DenseReluDense.wi_0", "ffn.fc1": "layer.1.DenseReluDense.wi_1",
        "ffn.fc2": "layer.1.DenseReluDense.wo",
    }  # fmt: skip
    state = model.state_dict()
    found = {"token_embedding.weight": state["shared.weight"]}
    for block in range(model.config.num_layers):
        for original, name in parts.items():
            found[f"blocks.{block}.{original}.weight"] = state[f"encoder.block.{block}.{name}.weight"]
    return found | {"norm.weight": state["encoder.final_layer_norm.weight"]}


def save_tokenizer(path: Path) -> Path:
    """A tokenizer like UMT5's, of a few words: pieces that mark a word's beginning, `</s>` at the end."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def vae(width: int = 4, seed: int = 0) -> AutoencoderKLWan:
    """A video autoencoder of Wan2.1's structure, thin."""
    return randomise(AutoencoderKLWan(base_dim=width), seed)


def vae_original_names() -> list[str]:
    """The names in `Wan2.1_VAE.pth`, as Wan2.1's own modules (wan/modules/vae.py) make them."""
    conv = ["weight", "bias"]
    block = ["residual.0.gamma", "residual.3.gamma", *(f"residual.{n}.{p}" for n in (2, 6) for p in conv)]
    shortcut = [f"shortcut.{p}" for p in conv]
    resample, in_time = [f"resample.1.{p}" for p in conv], [f"time_conv.{p}" for p in conv]
    downsamples: dict[int, list[str]] = dict.fromkeys((0, 1, 3, 4, 6, 7, 9, 10), block)
    downsamples |= {2: resample, 5: resample + in_time, 8: resample + in_time}
    downsamples |= {3: block + shortcut, 6: block + shortcut}
    upsamples: dict[int, list[str]] = dict.fromkeys((0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14), block)
    upsamples |= {3: resample + in_time, 7: resample + in_time, 11: resample, 4: block + shortcut}
    attention = ["norm.gamma", *(f"{layer}.{p}" for layer in ("to_qkv", "proj") for p in conv)]
    names = [f"{layer}.{p}" for layer in ("conv1", "conv2") for p in conv]
    for half, layers in (("encoder.downsamples", downsamples), ("decoder.upsamples", upsamples)):
        side = half.partition(".")[0]
        names += [f"{side}.conv1.{p}" for p in conv]
        names += [f"{half}.{number}.{name}" for number, parts in layers.items() for name in parts]
        names += [
            f"{side}.middle.{n}.{name}" for n, parts in enumerate((block, attention, block)) for name in parts
        ]
        names += [f"{side}.head.0.gamma", *(f"{side}.head.2.{p}" for p in conv)]
    return names


def vae_original(model: AutoencoderKLWan) -> dict[str, Tensor]:
    """An autoencoder's tensors as `Wan2.1_VAE.pth` names them; diffusers' own converter says which."""
    state = model.state_dict()
    names = convert_wan_vae_to_diffusers({name: name for name in vae_original_names()})
    return {original: state[name] for name, original in names.items()}
