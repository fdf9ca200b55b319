"""Names of the video autoencoder's parameters: those of `Wan2.1_VAE.pth`, and diffusers' for the same.

The original numbers the layers of each half in one sequence. Its encoder's numbers are diffusers' too; its
decoder has stages of three residual blocks and an upsampling, which diffusers groups. Within a residual block
the original numbers the layers of a sequence: norm 0, convolution 2, norm 3, convolution 6.
"""

from __future__ import annotations

import re
from typing import Final

BLOCKS_A_STAGE: Final = 3
"""Residual blocks of a decoder's stage; the upsampling that follows them is the stage's fourth layer."""

_LAYERS: Final = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
_MIDDLE: Final = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_FIXED: Final = {
    "conv1.": "quant_conv.",
    "conv2.": "post_quant_conv.",
    "encoder.conv1.": "encoder.conv_in.",
    "decoder.conv1.": "decoder.conv_in.",
    "encoder.head.0.": "encoder.norm_out.",
    "decoder.head.0.": "decoder.norm_out.",
    "encoder.head.2.": "encoder.conv_out.",
    "decoder.head.2.": "decoder.conv_out.",
}
_NUMBERED: Final = re.compile(r"(encoder|decoder)\.(downsamples|middle|upsamples)\.(\d+)\.(.+)")


def is_original(name: str) -> bool:
    """Whether a name is one that only the original file has."""
    return _NUMBERED.fullmatch(name) is not None


def diffusers_name(name: str) -> str:
    """Diffusers' name of a tensor of `Wan2.1_VAE.pth`; unknown names stay as they are."""
    if (numbered := _NUMBERED.fullmatch(name)) is None:
        for old, new in _FIXED.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name
    half, part, number, layer = numbered.groups()
    for old, new in _LAYERS.items():
        if layer.startswith(old):
            layer = new + layer.removeprefix(old)
            break
    if part == "middle":
        return f"{half}.mid_block.{_MIDDLE.get(number, number)}.{layer}"
    if part == "downsamples":
        return f"{half}.down_blocks.{number}.{layer}"
    stage, place = divmod(int(number), BLOCKS_A_STAGE + 1)
    block = "upsamplers.0" if place == BLOCKS_A_STAGE else f"resnets.{place}"
    return f"{half}.up_blocks.{stage}.{block}.{layer}"
