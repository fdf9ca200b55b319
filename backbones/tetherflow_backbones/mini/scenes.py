"""Procedural video: two coloured shapes that bounce on a gradient, and the sentences that describe them.

A scene follows from its seed alone, on every device and in any batch: its random numbers are hashes of the
seed, not draws from a stream. Training seeds and held-out seeds are disjoint ranges.
"""

from __future__ import annotations

import math
import re

import attrs
import torch
from torch import Tensor

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 140, 25),
    "yellow": (250, 225, 45),
    "green": (40, 165, 65),
    "cyan": (60, 210, 220),
    "blue": (40, 80, 215),
    "purple": (125, 50, 180),
    "pink": (250, 130, 190),
    "white": (240, 240, 240),
}
"""Named colours, RGB 0..255; a scene jitters them."""

COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle")

TEMPLATES = (
    "a {0} {1} and a {2} {3} bounce on a {4} field",
    "a {0} {1} and a {2} {3} bouncing on a {4} background",
    "a {0} {1} and a {2} {3} move across a {4} background",
    "two shapes, a {0} {1} and a {2} {3}, on a {4} field",
    "on a {4} background, a {0} {1} and a {2} {3} bounce",
    "a {4} field with a {0} {1} and a {2} {3} bouncing around",
    "{0} {1} and {2} {3} on {4}",
)
"""Prompts; the fields are colour and shape of the back figure, of the front one, and the field's colour."""

FPS = 16
HELD_OUT = 2**31
"""Seeds from here on are never trained on."""

_MASK = 2**32 - 1
_EDGE = 1.5  # pixels over which a figure's edge fades: sharp to the eye, no stairs


@attrs.frozen
class Subject:
    """What a sentence says of a scene; all else is left to chance.

    Attributes:
        colours: Indices into `COLOURS`, the back figure's first.
        shapes: Indices into `SHAPES`, likewise.
        field: Index of the background's colour.
    """

    colours: tuple[int, int]
    shapes: tuple[int, int]
    field: int


@attrs.frozen
class Scenes:
    """A batch of scenes; lengths are in widths of the frame, times in seconds, colours in 0..1.

    Attributes:
        colour: Indices into `COLOURS`, int64 `[N, 2]`, the back figure first.
        shape: Indices into `SHAPES`, int64 `[N, 2]`.
        field: Index of the background's colour, int64 `[N]`.
        figure_rgb: Colours as rendered, float32 `[N, 2, 3]`.
        field_rgb: The gradient's two ends, float32 `[N, 2, 3]`.
        angle: Direction of the gradient, radians, `[N]`.
        radius: Radius of each figure, `[N, 2]`.
        centre: Position at time 0, x then y, `[N, 2, 2]`.
        velocity: Widths a second, `[N, 2, 2]`.
        template: Index into `TEMPLATES`, int64 `[N]`.
    """

    colour: Tensor
    shape: Tensor
    field: Tensor
    figure_rgb: Tensor
    field_rgb: Tensor
    angle: Tensor
    radius: Tensor
    centre: Tensor
    velocity: Tensor
    template: Tensor

    def prompts(self, template: int | None = None) -> list[str]:
        """A sentence for each scene: by its own template, or by the given one for all."""
        columns = [self.colour, self.shape, self.field[:, None], self.template[:, None]]
        rows: list[list[int]] = torch.cat(columns, dim=1).tolist()
        return [
            _sentence(
                TEMPLATES[own if template is None else template],
                (COLOURS[back], SHAPES[back_shape], COLOURS[front], SHAPES[front_shape], COLOURS[field]),
            )
            for back, front, back_shape, front_shape, field, own in rows
        ]


def training_seeds(start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Seeds to train on, int64 `[count]`; they wrap around below the held-out range."""
    return (torch.arange(start, start + count, device=device, dtype=torch.int64)) % HELD_OUT


def held_out_seeds(start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Seeds to judge by, int64 `[count]`."""
    return torch.arange(start, start + count, device=device, dtype=torch.int64) % HELD_OUT + HELD_OUT


def sample_scenes(seeds: Tensor, subject: Subject | None = None) -> Scenes:
    """The scenes of int64 seeds `[N]`, on the seeds' device; of one subject, if it is given."""
    draws = iter(_uniform(seeds, 30).unbind(1))
    palette = torch.tensor(list(PALETTE.values()), device=seeds.device, dtype=torch.float32) / 255

    def vector(*shape: int) -> Tensor:
        return torch.stack([next(draws) for _ in range(math.prod(shape))], dim=1).reshape(-1, *shape)

    # Three different colours: each draw skips those taken before it.
    field = (next(draws) * len(COLOURS)).long()
    back = (field + 1 + (next(draws) * (len(COLOURS) - 1)).long()) % len(COLOURS)
    low, high = torch.minimum(field, back), torch.maximum(field, back)
    front = (next(draws) * (len(COLOURS) - 2)).long()
    front = front + (front >= low)
    front = front + (front >= high)
    colour = torch.stack([back, front], dim=1)

    shape = (vector(2) * len(SHAPES)).long()
    if subject is not None:
        field = torch.full_like(field, subject.field)
        colour = torch.tensor(subject.colours, device=seeds.device).expand_as(colour)
        shape = torch.tensor(subject.shapes, device=seeds.device).expand_as(shape)
    template = (next(draws) * len(TEMPLATES)).long()
    angle = next(draws) * (2 * math.pi)
    figure_rgb = (palette[colour] + (vector(2, 3) - 0.5) * 0.08).clamp(0, 1)
    # One hue: both ends are the named colour, one in shade, which also sets figures off from the field.
    hue = palette[field] + (vector(3) - 0.5) * 0.08
    shade = torch.stack([0.55 + 0.1 * next(draws), 0.85 + 0.1 * next(draws)], dim=1)
    field_rgb = (hue[:, None] * shade[..., None]).clamp(0, 1)

    radius = 0.11 + 0.07 * vector(2)
    centre = radius[..., None] + (1 - 2 * radius[..., None]) * vector(2, 2)
    speed = 0.22 + 0.26 * vector(2)
    # Headings keep clear of the axes, so that a figure crosses the frame both ways.
    quarter = torch.floor(4 * vector(2))
    heading = (quarter + 0.12 + 0.76 * vector(2)) * (math.pi / 2)
    velocity = speed[..., None] * torch.stack([heading.cos(), heading.sin()], dim=-1)
    return Scenes(colour, shape, field, figure_rgb, field_rgb, angle, radius, centre, velocity, template)


def render(scenes: Scenes, frames: int, size: int = 128, start: int = 0) -> Tensor:
    """Render scenes as video.

    Args:
        scenes: N scenes.
        frames: Video frames, 16 a second.
        size: Height and width, pixels.
        start: Index of the first frame rendered.

    Returns:
        RGB in 0..1, float32 `[N, frames, 3, size, size]`.
    """
    device = scenes.radius.device
    time = (start + torch.arange(frames, device=device, dtype=torch.float32)) / FPS
    axis = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    y, x = axis[:, None], axis[None, :]

    along = (x - 0.5) * scenes.angle.cos()[:, None, None] + (y - 0.5) * scenes.angle.sin()[:, None, None]
    blend = (along / math.sqrt(2) + 0.5).clamp(0, 1)[:, None]  # [N, 1, size, size]
    near, far = scenes.field_rgb.unbind(1)
    field = near[..., None, None] + (far - near)[..., None, None] * blend
    video = field[:, None].expand(-1, frames, -1, -1, -1)

    position = _bounce(scenes, time)  # [N, frames, 2, 2]
    for figure in range(2):
        dx = x - position[:, :, figure, 0, None, None]
        dy = y - position[:, :, figure, 1, None, None]
        radius = scenes.radius[:, figure, None, None, None]
        outside = _distance(scenes.shape[:, figure, None, None, None], dx, dy, radius)
        cover = (0.5 - outside * (size / _EDGE)).clamp(0, 1)[:, :, None]  # [N, frames, 1, size, size]
        video = torch.lerp(video, scenes.figure_rgb[:, None, figure, :, None, None], cover)
    return video


def render_bytes(scenes: Scenes, frames: int, size: int = 128, start: int = 0) -> Tensor:
    """As `render`, but uint8 in 0..255."""
    return render(scenes, frames, size, start).mul(255).round().to(torch.uint8)


def _sentence(template: str, words: tuple[str, ...]) -> str:
    """Fill a template, with the article that the next word wants."""
    return re.sub(r"\ba (?=o)", "an ", template.format(*words))


def _bounce(scenes: Scenes, time: Tensor) -> Tensor:
    """Centres at times `[F]`, `[N, F, 2, 2]`: straight flight folded back at the walls."""
    margin = scenes.radius[:, None, :, None]
    span = 1 - 2 * margin
    flown = scenes.centre[:, None] - margin + scenes.velocity[:, None] * time[:, None, None]
    return margin + span - (flown.remainder(2 * span) - span).abs()


def _distance(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the figure's edge, positive outside; y points down, so triangles stand on a side."""
    circle = torch.hypot(dx, dy) - radius
    square = torch.maximum(dx.abs(), dy.abs()) - 0.886 * radius  # the circle's area
    # Inscribed in 1.2 radii, an equilateral triangle has three quarters of the circle's area.
    slanted = dx.abs() * (math.sqrt(3) / 2) - dy * 0.5
    triangle = torch.maximum(slanted, dy) - 0.6 * radius
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))


def _uniform(seeds: Tensor, draws: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 `[N, draws]`: a hash of each seed and the draw's index."""
    low, high = seeds & _MASK, (seeds >> 32) & _MASK
    index = torch.arange(draws, device=seeds.device, dtype=torch.int64)
    state = _mix(_mix(low[:, None] ^ _mix(high[:, None] + 0x9E3779B9)) + index * 0x85EBCA6B)
    return (_mix(state) >> 8).to(torch.float32) / 2**24


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash (the lowbias32 constants), on int64 tensors."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
