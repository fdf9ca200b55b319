"""How a backbone is to compute what it computes."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import attrs

from tetherflow.cache.attention import PLAIN, Attention

MatrixProducts = Literal["precision", "fp8"]
"""Type of the transformer's matrix products: the precision's own, or 8-bit floating point."""


@attrs.frozen
class Tuning:
    """What a recipe's `runtime` asks of a backbone; none of it changes what is computed but for rounding.

    Attributes:
        attention: computes attention; on prompts, too, unless a backbone has a kernel of its own for that.
        compile: whether to compile what lies between attentions.
        products: type of the matrix products.
        chunk_frames: latent frames of a usual chunk; only such chunks are worth compiling for.
        low_memory: whether to save memory at the cost of time.
    """

    attention: Attention = PLAIN
    compile: bool = False
    products: MatrixProducts = "precision"
    chunk_frames: int = 3
    low_memory: bool = False


@runtime_checkable
class Tunable(Protocol):
    """A part of a backbone that can be tuned: its transformer, its rotary embedding."""

    def tune(self, tuning: Tuning) -> None:
        """Compute so from now on.

        Raises:
            KernelError: The device cannot.
        """
