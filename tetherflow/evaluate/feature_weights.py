"""How the weights of the fixed feature net were made.

`python -m tetherflow.evaluate.feature_weights OUT.safetensors` makes them again. The figures never use this:
they use the file that ships, so that a figure means the same on every machine and with every torch.

Random filters, each scaled so that its responses over a set of synthetic images with natural statistics
(amplitude falling as frequency^-1.3, random mean colour and contrast) have unit variance. Half of each
layer's filters have no constant part and see edges only; the others see colour as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

CHANNELS: Final = (8, 12, 12)
KERNEL: Final = 5
SIDE: Final = 64
_IMAGES: Final = 128
_SEED: Final = 0


def pool(maps: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation over space: `[n, C, h, w]` to `[n, 2C]`."""
    return torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3), correction=0)], dim=1)


def responses(images: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Pooled responses of all layers, before they are standardised.

    Args:
        images: float32 `[n, 3, SIDE, SIDE]`, from -1 to 1.
        weights: `conv{i}.weight` float32 `[C_i, C_{i-1}, KERNEL, KERNEL]` and `conv{i}.bias` `[C_i]`.

    Returns:
        float32 `[n, 2 * sum(CHANNELS)]`.
    """
    maps, pooled = images, []
    for i in range(len(CHANNELS)):
        maps = F.relu(F.conv2d(maps, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], stride=2))
        pooled.append(pool(maps))
    return torch.cat(pooled, dim=1)


def make_weights() -> dict[str, torch.Tensor]:
    """Make the weights from their seed.

    Returns:
        The filters and biases that `responses` reads, and `mean` and `scale`, float32 `[64]`, which
        standardise the pooled responses. The scale holds 1/sqrt(64) too, so that a squared distance between
        two feature vectors is an average over features.
    """
    generator = torch.Generator().manual_seed(_SEED)
    images = _natural_images(generator)
    maps, weights = images, dict[str, torch.Tensor]()
    for i, channels in enumerate(CHANNELS):
        filters = torch.randn(channels, maps.shape[1], KERNEL, KERNEL, generator=generator)
        edges = channels // 2
        filters[edges:] -= filters[edges:].mean(dim=(2, 3), keepdim=True)
        filters /= F.conv2d(maps, filters, stride=2).std(dim=(0, 2, 3)).view(-1, 1, 1, 1)
        centre = F.conv2d(maps, filters, stride=2).mean(dim=(0, 2, 3))
        bias = 0.5 * torch.randn(channels, generator=generator) - centre
        weights |= {f"conv{i}.weight": filters, f"conv{i}.bias": bias}
        maps = F.relu(F.conv2d(maps, filters, bias, stride=2))
    pooled = responses(images, weights)
    weights["mean"] = pooled.mean(dim=0)
    weights["scale"] = 1 / (pooled.std(dim=0) * pooled.shape[1] ** 0.5)
    return weights


def _natural_images(generator: torch.Generator) -> torch.Tensor:
    """float32 `[n, 3, SIDE, SIDE]`, from -1 to 1."""
    noise = torch.fft.rfft2(torch.randn(_IMAGES, 3, SIDE, SIDE, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = 1 / SIDE
    texture = torch.fft.irfft2(noise / frequency**1.3)
    texture /= texture.std(dim=(2, 3), keepdim=True)
    colour = 0.25 + 0.5 * torch.rand(_IMAGES, 3, 1, 1, generator=generator)
    contrast = 0.02 + 0.25 * torch.rand(_IMAGES, 1, 1, 1, generator=generator)
    images: torch.Tensor = (colour + contrast * texture).clamp(0, 1) * 2 - 1
    return images


if __name__ == "__main__":
    save_file(make_weights(), Path(sys.argv[1]))
