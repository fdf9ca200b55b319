"""What backbones around a causal Wan transformer have in common."""

from __future__ import annotations

import torch

from tetherflow.backbone import Backbone
from tetherflow.cache import CacheShape
from tetherflow_backbones.causal_wan.rotary import WanRotary
from tetherflow_backbones.causal_wan.transformer import CausalWanTransformer


class CausalWanBackbone(Backbone):
    """A backbone whose transformer is the causal Wan one; what follows from its sizes is here."""

    _transformer: CausalWanTransformer
    _rotary: WanRotary
    _latent_size: tuple[int, int]

    def _use(self, transformer: CausalWanTransformer, latent_size: tuple[int, int], *, parity: bool) -> None:
        """Take in the loaded transformer; to be called by constructors.

        Args:
            transformer: the transformer, on its device.
            latent_size: rows and columns of a latent frame.
            parity: whether to keep the published order of operations.
        """
        if not parity:
            transformer.fuse()
        arch = transformer.arch
        self._transformer = transformer
        self._latent_size = latent_size
        self._rotary = WanRotary(
            arch.head_dim, arch.grid(*latent_size), torch.float64 if parity else torch.float32
        )

    @property
    def transformer(self) -> CausalWanTransformer:
        """The denoising transformer."""
        return self._transformer

    @property
    def rotary(self) -> WanRotary:
        """The rotary embedding of its queries and keys."""
        return self._rotary

    @property
    def cache_shape(self) -> CacheShape:
        """Layers, heads and tokens of its cache."""
        arch = self._transformer.arch
        rows, columns = self._rotary.grid
        return CacheShape(arch.num_layers, arch.num_heads, arch.head_dim, rows * columns, rows)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent frame."""
        return (self._transformer.arch.in_dim, *self._latent_size)
