"""Sizes of the miniature, and of a still smaller one that tests of its training use."""

from __future__ import annotations

from typing import Any

import attrs

from tetherflow_backbones.causal_wan import Architecture


@attrs.frozen
class Sizes:
    """Everything that fixes a miniature's shapes.

    Attributes:
        transformer: Sizes of the transformer.
        vae: Arguments of `AutoencoderKLWan`, without the latents' statistics.
        frame: Height and width of a video frame, pixels.
        latent_frames: Latent frames of a training clip.
        chunk_frames: Latent frames denoised together.
    """

    transformer: Architecture
    vae: dict[str, Any]
    frame: int
    latent_frames: int = 21
    chunk_frames: int = 3

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a latent frame."""
        return int(self.vae["z_dim"]), self.frame // 8, self.frame // 8

    @property
    def video_frames(self) -> int:
        """Video frames of a training clip."""
        return 1 + 4 * (self.latent_frames - 1)


def _vae(base_dim: int, z_dim: int) -> dict[str, Any]:
    """Wan2.2's residual layout: pixels unshuffled by 2, then two stages that halve space and time alike."""
    return {
        "base_dim": base_dim,
        "z_dim": z_dim,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "attn_scales": [],
        "temperal_downsample": [True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 8,
    }


MINI = Sizes(
    transformer=Architecture(
        dim=320,
        ffn_dim=768,
        num_heads=5,
        num_layers=7,
        freq_dim=256,
        text_dim=96,
        text_len=24,
        in_dim=8,
        out_dim=8,
    ),
    vae=_vae(base_dim=24, z_dim=8),
    frame=128,
)

TINY = Sizes(
    transformer=Architecture(
        dim=48,
        ffn_dim=64,
        num_heads=2,
        num_layers=2,
        freq_dim=32,
        text_dim=16,
        text_len=24,
        in_dim=4,
        out_dim=4,
    ),
    vae=_vae(base_dim=8, z_dim=4),
    frame=32,
)
