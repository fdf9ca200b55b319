"""The Krea Realtime backbone: Self-Forcing at 14 billion parameters."""

from __future__ import annotations

from tetherflow_backbones.published import PublishedWan, Training, with_defaults
from tetherflow_backbones.published.options import Sizes


class KreaRealtime(PublishedWan):
    """Krea Realtime 14B, distilled from Wan2.1-T2V-14B by Self-Forcing."""

    Options = with_defaults(architecture=Sizes(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40))
    checkpoint = "krea-realtime"
    transformer_file = "krea/krea-realtime-video/krea-realtime-video-14b.safetensors"
    training = Training(window=21)
