"""Wan2.1's text encoder, written plainly from its description, under its own names: an oracle for UMT5."""

from __future__ import annotations

from collections.abc import Mapping
from math import log

import torch
from torch import Tensor
from torch.nn import functional

MAX_DISTANCE = 128


def encode(state: Mapping[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states `[L, dim]` of one prompt's tokens `[L]`, of which `mask` `[L]` are no padding."""
    x = state["token_embedding.weight"][ids]
    for block in range(sum(name.endswith(".attn.q.weight") for name in state)):
        own = {
            k.removeprefix(f"blocks.{block}."): t
            for k, t in state.items()
            if k.startswith(f"blocks.{block}.")
        }
        x = x + attention(own, norm(x, own["norm1.weight"]), mask)
        h = norm(x, own["norm2.weight"])
        gate = functional.gelu(h @ own["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (h @ own["ffn.fc1.weight"].T)) @ own["ffn.fc2.weight"].T
    return norm(x, state["norm.weight"])


def attention(own: Mapping[str, Tensor], x: Tensor, mask: Tensor) -> Tensor:
    """Every layer has a bias of its own for each distance and head; there is no scaling."""
    bias_table = own["pos_embedding.embedding.weight"]  # [buckets, heads]
    heads = bias_table.shape[1]
    q, k, v = ((x @ own[f"attn.{n}.weight"].T).unflatten(1, (heads, -1)) for n in "qkv")
    out = torch.zeros_like(q)
    for head in range(heads):
        for i in range(len(x)):
            biases = torch.stack([bias_table[bucket(j - i, len(bias_table)), head] for j in range(len(x))])
            logits = k[:, head] @ q[i, head] + biases
            weights = torch.where(mask.bool(), logits, float("-inf")).softmax(0)
            out[i, head] = weights @ v[:, head]
    return out.flatten(1) @ own["attn.o.weight"].T


def bucket(distance: int, buckets: int) -> int:
    """Half of the buckets for what lies ahead; small distances have one each, larger ones share."""
    half = buckets // 2
    start, distance = (half if distance > 0 else 0), abs(distance)
    exact = half // 2
    if distance < exact:
        return start + distance
    large = exact + int(log(distance / exact) / log(MAX_DISTANCE / exact) * (half - exact))
    return start + min(large, half - 1)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
