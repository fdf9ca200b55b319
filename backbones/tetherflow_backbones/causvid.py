"""The CausVid backbone (arXiv 2412.07772)."""

from __future__ import annotations

from tetherflow_backbones.published import PublishedWan, with_defaults


class CausVid(PublishedWan):
    """CausVid on Wan2.1-T2V-1.3B: three denoising steps that are not warped, at shift 8."""

    Options = with_defaults(steps=(1000, 757, 522), warp=False, shift=8.0)
    checkpoint = "causvid"
    transformer_file = "tianweiy/CausVid/autoregressive_checkpoint/model.pt"
