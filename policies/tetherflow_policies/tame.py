"""TAME: edit what is recalled towards trusted statistics (TetherCache, arXiv 2606.13035, section 3.3)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from tetherflow import Draft, Editor, StageOptions, hookimpl


class Tame(Editor):
    """Move a newcomer's keys and values towards the trusted pool's mean and deviation, channel by channel.

    x ← (1 − τ) x + τ (σ_t (x − μ_x) / σ_x + μ_t), adaptive instance normalisation (arXiv 1703.06868) with
    (μ_x, σ_x) over the newcomer's tokens and (μ_t, σ_t) over the sink and memory as they were before, for
    keys and values apart, per head and channel. τ = 0 edits nothing; τ = 1 gives exactly the trusted
    statistics.
    """

    class Options(StageOptions):
        """Options of the editor."""

        tau: float = Field(default=0.6, ge=0, le=1, description="Strength τ of the edit.")

    options: Options

    @hookimpl
    def edit(self, draft: Draft) -> None:
        """Edit the draft's keys and values in place."""
        tau = self.options.tau
        # A schedule may have measured τ: a tensor, whose value only the device knows.
        if not draft.trusted_units or (isinstance(tau, float) and tau == 0):
            return
        blend_in = draft.fuse(blend)
        for x, own, trusted in (
            (draft.keys, draft.key_statistics, draft.trusted_keys),
            (draft.values, draft.value_statistics, draft.trusted_values),
        ):
            blend_in(x, own.mean, own.variance, trusted.mean, trusted.variance, tau)


def blend(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    trusted_mean: Tensor,
    trusted_variance: Tensor,
    tau: float | Tensor,
) -> None:
    """Blend `x` `[B, n, T, H, D]` with its version in the trusted statistics, in place.

    Args:
        x: keys or values.
        mean: of each unit's channels over its tokens, `[B, n, H, D]`.
        variance: likewise.
        trusted_mean: of the trusted pool, `[B, H, D]`.
        trusted_variance: likewise.
        tau: τ.
    """
    scale = (trusted_variance[:, None] / variance.clamp_min(EPS**2)).sqrt()
    # (1 − τ) x + τ (scale · (x − μ_x) + μ_t), regrouped by x − μ_x. Centred first: where σ_x is small beside
    # μ_x, the scale is large, and scale · x − scale · μ_x would cancel to noise.
    gain = scale * tau + (1 - tau)
    target = mean.lerp(trusted_mean[:, None], tau)
    centred = x - mean[:, :, None]  # float32, whatever x is; rounded to its type at the end only
    if torch.compiler.is_compiling():  # which takes no `out` that is not one piece of memory
        x.copy_(torch.addcmul(target[:, :, None], centred, gain[:, :, None]))
    else:
        torch.addcmul(target[:, :, None], centred, gain[:, :, None], out=x)


EPS = 1e-6
"""Smallest deviation that a newcomer's channel is divided by."""
