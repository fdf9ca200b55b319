"""How a published checkpoint was trained to use its cache, and what speaks against using it otherwise."""

from __future__ import annotations

import attrs

from tetherflow.backbone import CacheUse
from tetherflow.cache.interfaces import Positions
from tetherflow.cache.layout import Layout


@attrs.frozen
class Training:
    """The cache with which a checkpoint was trained.

    Attributes:
        window: latent frames that it attended to at most, the current chunk included.
        sink: first frames that stayed among them.
        bank: frames after the sink that took in what left the window.
        positions: key positions.
        policies: stage plugins of the policy that it was trained with, once for each way to write it;
            none if it was trained on videos that fit into the window, so that any policy is as foreign to it
            as any other.
    """

    window: int = 21
    sink: int = 0
    bank: int = 0
    positions: Positions = "absolute"
    policies: tuple[tuple[str, ...], ...] = ()

    def advice(self, name: str, chunk_frames: int, use: CacheUse) -> list[str]:
        """What speaks against a use of the cache.

        Args:
            name: the checkpoint's name.
            chunk_frames: latent frames that it was trained to denoise together.
            use: the cache's use.
        """
        found = []
        if self.policies and use.policies not in self.policies:
            trained = " or ".join(map(_list, self.policies))
            found.append(
                f"{name} was trained with the policy {trained}, and meets {_list(use.policies)} "
                "for the first time here; a policy without training is better tried on self-forcing"
            )
        elif self.policies and _kept(use.layout) != (self.sink, self.bank, self.window):
            sink, bank, window = _kept(use.layout)
            found.append(
                f"{name} was trained with {self.sink} sink frames and a bank of {self.bank} in a window of "
                f"{self.window}; this recipe gives it {sink} and {bank} in {window}"
            )
        elif use.layout.budget > self.window:
            found.append(
                f"{name} was trained to attend to {self.window} latent frames at most; this recipe's budget "
                f"is {use.layout.budget}"
            )
        if self.policies and use.positions != self.positions:
            found.append(
                f"{name} was trained with {self.positions} positions; this recipe's are {use.positions}"
            )
        if use.chunk_frames != chunk_frames:
            found.append(
                f"{name} was trained to denoise {chunk_frames} latent frames together; this recipe's chunk "
                f"has {use.chunk_frames}"
            )
        return found


def _kept(layout: Layout) -> tuple[int, int, int]:
    return layout.sink, layout.bank, layout.budget


def _list(names: tuple[str, ...]) -> str:
    return " + ".join(names)
