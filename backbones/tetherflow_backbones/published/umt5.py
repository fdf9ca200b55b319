"""Loads the UMT5 text encoder, under transformers' names or as `models_t5_umt5-xxl-enc-bf16.pth` has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from tetherflow.errors import WeightsError
from tetherflow_backbones.loading import assign, check_parameters
from tetherflow_backbones.tensor_files import Stored, open_tensors

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

_ATTENTION: Final = "layer.0.SelfAttention"
_FEED_FORWARD: Final = "layer.1.DenseReluDense"
_TOP: Final = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
    "encoder.embed_tokens.weight": "shared.weight",
}
_BLOCK: Final = {
    "norm1": "layer.0.layer_norm",
    "attn.q": f"{_ATTENTION}.q",
    "attn.k": f"{_ATTENTION}.k",
    "attn.v": f"{_ATTENTION}.v",
    "attn.o": f"{_ATTENTION}.o",
    "pos_embedding.embedding": f"{_ATTENTION}.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": f"{_FEED_FORWARD}.wi_0",
    "ffn.fc1": f"{_FEED_FORWARD}.wi_1",
    "ffn.fc2": f"{_FEED_FORWARD}.wo",
}
_NUMBERED: Final = re.compile(r"blocks\.(\d+)\.(.+)\.weight")


def load_umt5(path: Path, *, device: torch.device, dtype: torch.dtype) -> UMT5EncoderModel:
    """A UMT5 encoder (arXiv 2304.09151) of whatever size the file has, in inference mode.

    Args:
        path: Wan2.1's `models_t5_umt5-xxl-enc-bf16.pth`, or transformers' folder or files, sharded or not.
        device: where it goes.
        dtype: its type.

    Raises:
        WeightsError: A file is missing, truncated or of another model, or transformers is not installed.
    """
    try:
        from transformers import UMT5Config, UMT5EncoderModel
    except ImportError as error:
        raise WeightsError(
            "the text encoder needs transformers, which is not installed: pip install 'tetherflow[wan]'"
        ) from error
    stored = {transformers_name(name): tensor for name, tensor in open_tensors(path).items()}
    with torch.device("meta"):
        network = UMT5EncoderModel(UMT5Config(**_sizes(path, stored)))
    # The embedding has two names in the model and is one tensor.
    stored["encoder.embed_tokens.weight"] = stored["shared.weight"]
    check_parameters(path, network, stored, "the UMT5 text encoder")
    assign(network, stored, device, dtype)
    network.set_input_embeddings(network.shared)
    return network.eval().requires_grad_(False)


def transformers_name(name: str) -> str:
    """Transformers' name of a tensor of Wan2.1's file; other names stay as they are."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None or numbered[2] not in _BLOCK:
        return _TOP.get(name, name)
    return f"encoder.block.{numbered[1]}.{_BLOCK[numbered[2]]}.weight"


def _sizes(path: Path, stored: Mapping[str, Stored]) -> dict[str, int | str]:
    """The encoder's sizes, as its tensors' shapes tell them; the rest is the same in every UMT5."""
    block = "encoder.block.0."
    try:
        vocabulary, width = stored["shared.weight"].shape
        inner = stored[f"{block}{_ATTENTION}.q.weight"].shape[0]
        buckets, heads = stored[f"{block}{_ATTENTION}.relative_attention_bias.weight"].shape
        hidden = stored[f"{block}{_FEED_FORWARD}.wi_0.weight"].shape[0]
    except (KeyError, ValueError) as error:
        from tetherflow_backbones.recognise import looks_like

        seen = looks_like({name: tensor.shape for name, tensor in stored.items()})
        raise WeightsError(
            f"{path} is no UMT5 text encoder ({error} is not there); it looks like {seen}"
        ) from error
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_heads": heads,
        "num_layers": 1 + max(int(n.split(".")[2]) for n in stored if n.startswith("encoder.block.")),
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }
