"""The LongLive backbone (arXiv 2509.22622)."""

from __future__ import annotations

from tetherflow_backbones.published import PublishedWan, Training


class LongLive(PublishedWan):
    """LongLive 1.3B with its adapter merged: trained on long videos, with a frame sink and a short window."""

    checkpoint = "longlive"
    transformer_file = "Efficient-Large-Model/LongLive-1.3B/models/longlive_base.pt"
    lora_file = "Efficient-Large-Model/LongLive-1.3B/models/lora.pt"
    lora_alpha = 256.0
    training = Training(window=12, sink=3, positions="absolute", policies=(("longlive",), ("sink-window",)))
