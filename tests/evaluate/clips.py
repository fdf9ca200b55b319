"""Clips that stand for real video in these tests: two soft-edged shapes that bounce on a gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SIZE = 64
COLOURS = torch.tensor(
    [[220, 50, 40], [50, 90, 220], [60, 170, 70], [230, 200, 60], [150, 70, 180], [60, 190, 200]]
)


def clip(seed: int, times: torch.Tensor, *, shapes: int = 2, motion: int | None = None) -> torch.Tensor:
    """Frames of scene `seed` at `times` (seconds): float `[n, 3, SIZE, SIZE]`, 0 to 1.

    A scene has colours, sizes and a motion; `motion` gives it other sizes and another motion.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    axis = torch.linspace(0, 1, SIZE)
    palette = COLOURS[torch.randperm(len(COLOURS), generator=generator)] / 255 + 0.1 * (
        uniform(len(COLOURS), 3) - 0.5
    )
    if motion is not None:
        generator.manual_seed(2**32 + 1000 * seed + motion)
    slope = axis.view(-1, 1).expand(SIZE, SIZE)
    frames = torch.lerp(palette[0].view(3, 1, 1), palette[1].view(3, 1, 1), slope)
    frames = frames.expand(len(times), 3, SIZE, SIZE)
    for shape in range(2):
        radius, start, speed = 0.1 + 0.07 * uniform(1), uniform(2), uniform(2) - 0.5
        path = (start + times[:, None] * speed) % 2
        centres = radius + (1 - 2 * radius) * torch.where(path > 1, 2 - path, path)
        across = (axis.view(1, 1, -1) - centres[:, 0].view(-1, 1, 1)).abs()
        down = (axis.view(1, -1, 1) - centres[:, 1].view(-1, 1, 1)).abs()
        distance = torch.maximum(across, down) if shape else torch.hypot(across, down)
        cover = ((radius - distance) * SIZE + 0.5).clamp(0, 1)[:, None]
        if shape < shapes:
            frames = torch.lerp(frames, palette[2 + shape].view(1, 3, 1, 1), cover)
    return frames.clamp(0, 1)


def pixels(frames: torch.Tensor) -> torch.Tensor:
    """As uint8."""
    return (frames * 255).round().clamp(0, 255).to(torch.uint8)


def blurred(frames: torch.Tensor, radius: int) -> torch.Tensor:
    """Box blur over `2 radius + 1` pixels, twice."""
    for _ in range(2):
        padded = F.pad(frames, (radius,) * 4, mode="replicate")
        frames = F.avg_pool2d(padded, 2 * radius + 1, stride=1)
    return frames


def contrasted(frames: torch.Tensor, gain: float) -> torch.Tensor:
    """More contrast, as over-exposed frames have."""
    return ((frames - 0.5) * gain + 0.5).clamp(0, 1)
