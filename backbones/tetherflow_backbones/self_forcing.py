"""The Self-Forcing backbones: Wan2.1 made causal by training on its own rollouts (arXiv 2506.08009)."""

from __future__ import annotations

from tetherflow_backbones.published import PublishedWan


class SelfForcing(PublishedWan):
    """Self-Forcing with distribution matching: the checkpoint that training-free policies start from.

    Wan2.1-T2V-1.3B made causal, four denoising steps and a context pass, 480x832 at 16 frames a second.
    """

    checkpoint = "self-forcing"
    transformer_file = "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt"


class SelfForcingSid(PublishedWan):
    """Self-Forcing trained by score identity distillation; otherwise as self-forcing."""

    checkpoint = "self-forcing-sid"
    transformer_file = "gdhe17/Self-Forcing/checkpoints/self_forcing_sid.pt"
