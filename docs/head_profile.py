"""Finds the static heads of a backbone for `forcing-kv`: `python docs/head_profile.py [RECIPE] [SHARE]`.

A head is static if at least SHARE (0.8) of its attention beyond the first 3 frames falls on the last 4, the
chunk's among them (Forcing-KV, arXiv 2605.09681). Measured in the context passes of one 21-frame window, over
the first prompts of the recipe's backbone; layer 0 is exempt.
"""

from __future__ import annotations

import sys

import torch

from tetherflow import Eviction, Evictor, Slots, hookimpl
from tetherflow.cache import Layout
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import backbone_of, load_recipe
from tetherflow.rollout.session import Session

WINDOW, FIRST, LAST, PROMPTS = 21, 3, 4, 4


class Probe(Evictor):
    """A sliding window that adds up each head's attention."""

    def __init__(self) -> None:
        super().__init__(name="probe")
        self.near: dict[int, torch.Tensor] = {}
        self.far: dict[int, torch.Tensor] = {}

    @hookimpl
    def evict(self, count: int) -> Eviction:
        """Choose the oldest."""
        return Eviction(range(count))

    @hookimpl
    def revise(self, slots: Slots) -> None:
        """Note the attention of a context pass that sees more than the first and last frames."""
        frames, ranks = slots.frames, slots.current
        if slots.held <= FIRST + LAST:
            return
        now = frames[:, ranks.start :]
        query = slots.rotate(slots.query, now, torch.zeros_like(now)).flatten(1, 2)
        keys = slots.rotate(slots.read_keys(range(slots.held)), frames, torch.zeros_like(frames))
        logits = torch.einsum("bqhd,bnthd->bhqnt", query, keys) / query.shape[-1] ** 0.5
        mass = logits.flatten(3).softmax(dim=-1).unflatten(3, logits.shape[3:]).sum(dim=(0, 2, 4))  # [H, n]
        self.near[slots.layer] = self.near.get(slots.layer, 0) + mass[:, -LAST:].sum(dim=1)
        self.far[slots.layer] = self.far.get(slots.layer, 0) + mass[:, FIRST:].sum(dim=1)


def main(name: str = "fifo", share: str = "0.8") -> None:
    """Print each head's share, and the static heads as the recipe's option."""
    backbone = backbone_of(load_recipe(name), torch.device("cpu"), torch.float32)
    probe = Probe()
    session = Session(backbone, Layout(0, 0, WINDOW), Pipeline(probe))
    prompts = backbone.sample_prompts(PROMPTS)
    for _ in session.stream(prompts, latent_frames=WINDOW, seeds=range(PROMPTS), decode=False):
        pass
    static = []
    for layer in sorted(probe.near):
        shares = (probe.near[layer] / probe.far[layer]).tolist()
        print(layer, " ".join(f"{each:.2f}" for each in shares))  # noqa: T201
        static.append([head for head, each in enumerate(shares) if layer and each >= float(share)])
    print(f"static_heads: {static}")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
