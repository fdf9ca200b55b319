"""The Reward-Forcing backbone (arXiv 2512.04678)."""

from __future__ import annotations

from tetherflow_backbones.published import PublishedWan, Training


class RewardForcing(PublishedWan):
    """Reward Forcing 1.3B: trained with a short window and a sink that averages what leaves it."""

    checkpoint = "reward-forcing"
    transformer_file = "JaydenLu666/Reward-Forcing-T2V-1.3B/rewardforcing.pt"
    training = Training(window=9, bank=3, positions="block-relative", policies=(("sink-window", "ema-sink"),))
