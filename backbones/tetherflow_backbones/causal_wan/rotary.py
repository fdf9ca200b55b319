"""Wan's three-axis rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from tetherflow.tuning import Tuning


class WanRotary:
    """Rotates queries and keys by their time, row and column (Wan2.1; RoFormer, arXiv 2104.09864).

    A head's channels pair up; of its `head_dim / 2` pairs, `head_dim // 6` turn with the row, as many with
    the column, and the rest with time. Angles are computed from positions, not looked up, so that positions
    have no upper limit (the published table ends at 1024).

    Args:
        head_dim: Width of a head, even.
        grid: Token rows and columns of a frame.
        precision: The type in which the rotation is carried out. `torch.float64` is the reference's;
            `torch.float32` is the fast mode's. Angles are float64 in both.
    """

    def __init__(self, head_dim: int, grid: tuple[int, int], precision: torch.dtype = torch.float32) -> None:
        self.head_dim = head_dim
        self.grid = grid
        self.precision = precision
        space = head_dim // 6
        time = head_dim // 2 - 2 * space
        # The reference builds each axis as a rotary embedding of its own width, hence three denominators.
        self._time = _frequencies(2 * time)
        self._space = _frequencies(2 * space)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._real = False

    def tune(self, tuning: Tuning) -> None:
        """Rotate in real numbers, which compile, or in complex ones, which are faster if nothing does."""
        self._real = tuning.compile and self.precision != torch.float64

    def phases(self, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Complex phases of frames at temporal positions, to be computed once and used for many tensors.

        Args:
            positions: temporal position of each frame, `[..., F]`, any real type.
            tokens: which T tokens of each frame, int64 `[..., F, T]`; all of them if omitted.

        Returns:
            `[..., F, T, 1, head_dim / 2]`, complex, of the rotation's precision; or what to multiply each
            channel by and its neighbour, `[..., F, T, 1, 2, head_dim]`, if it was tuned to compile.
        """
        frequencies, spatial = self._on(positions.device)
        if tokens is not None:
            spatial = spatial[tokens]
        time = (positions.to(torch.float64)[..., None] * frequencies)[..., None, :]  # [..., F, 1, time]
        angles = torch.cat(
            [
                time.expand(*positions.shape, spatial.shape[-2], time.shape[-1]),
                spatial.expand(*positions.shape, *spatial.shape[-2:]),
            ],
            dim=-1,
        )
        if self._real:
            own, neighbours = angles.cos().repeat_interleave(2, dim=-1), angles.sin()
            neighbours = torch.stack([-neighbours, neighbours], dim=-1).flatten(-2)
            return torch.stack([own, neighbours], dim=-2)[..., None, :, :].to(self.precision)
        phases = torch.polar(torch.ones_like(angles), angles)[..., None, :]
        return phases.to(torch.complex128 if self.precision == torch.float64 else torch.complex64)

    def turn(self, x: Tensor, phases: Tensor) -> Tensor:
        """Rotate frames of queries or keys by their phases.

        Args:
            x: `[B, F, T, H, D]`, T tokens a frame in row-major order.
            phases: what `phases` returned for `[F]` or `[B, F]` positions.

        Returns:
            The rotated tensor, of x's shape and type.
        """
        if not phases.is_complex():
            return turn_pairs(x, phases)
        pairs = torch.view_as_complex(x.to(self.precision).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * phases).flatten(-2).to(x.dtype)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate frames `x` `[B, F, T, H, D]` to temporal positions `[F]` or `[B, F]`."""
        return self.turn(x, self.phases(positions))

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Temporal frequencies `[time]` and each token's spatial angles `[T, D/2 - time]`, on a device."""
        if device not in self._tables:
            rows, columns = self.grid
            row = torch.arange(rows, dtype=torch.float64)[:, None, None] * self._space
            column = torch.arange(columns, dtype=torch.float64)[None, :, None] * self._space
            spatial = torch.cat(
                [row.expand(rows, columns, -1), column.expand(rows, columns, -1)], dim=-1
            ).flatten(0, 1)
            self._tables[device] = (self._time.to(device), spatial.to(device))
        return self._tables[device]


def turn_pairs(x: Tensor, phases: Tensor) -> Tensor:
    """Rotate frames `[B, F, T, H, D]` in real numbers; phases are `[..., F, T, 1, 2, D]`.

    (a, b) to (a cos - b sin, b cos + a sin): written so that a compiled kernel reads and writes in order.
    """
    wide = x.to(phases.dtype)
    neighbours = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    rotated: Tensor = wide * phases[..., 0, :] + neighbours * phases[..., 1, :]
    return rotated.to(x.dtype)


def _frequencies(width: int) -> Tensor:
    """Angular frequencies of a rotary embedding `width` channels wide, float64 `[width / 2]`."""
    return 1.0 / 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / max(width, 1))
