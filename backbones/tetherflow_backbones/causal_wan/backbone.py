"""What backbones around a causal Wan transformer have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch

from tetherflow.backbone import Backbone
from tetherflow.cache import CacheShape
from tetherflow.tuning import Tuning
from tetherflow_backbones.causal_wan.rotary import WanRotary
from tetherflow_backbones.causal_wan.transformer import CausalWanTransformer
from tetherflow_backbones.wan_vae import WanDecoder, WanEncoder, WanVAE


class CausalWanBackbone(Backbone):
    """A backbone whose transformer is the causal Wan one; what follows from its sizes is here.

    The video autoencoder is loaded when it is first used, unless a subclass has set it before.
    """

    _transformer: CausalWanTransformer
    _rotary: WanRotary
    _latent_size: tuple[int, int]
    _vae: WanVAE | None = None
    _tuning: Tuning = Tuning()

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

    def tune(self, tuning: Tuning) -> None:
        """Compute as a recipe's runtime asks, in the video autoencoder too.

        Raises:
            KernelError: The device cannot.
        """
        super().tune(tuning)
        self._tuning = tuning
        if self._vae is not None:
            self._vae.tune(tuning)

    def encoder(self) -> WanEncoder:
        """A new streaming encoder, for one video."""
        return self._autoencoder().encoder()

    def decoder(self) -> WanDecoder:
        """A new streaming decoder, for one rollout."""
        return self._autoencoder().decoder()

    def rest(self) -> None:
        """Move the video autoencoder off the device until it is next used."""
        if self._vae is not None:
            self._vae.rest()

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

    def _autoencoder(self) -> WanVAE:
        """The video autoencoder, loaded and tuned."""
        if self._vae is None:
            with torch.inference_mode(False):  # a rollout's own would leave parameters that cannot be moved
                self._vae = self._load_autoencoder()
            self._vae.tune(self._tuning)
        return self._vae

    @abstractmethod
    def _load_autoencoder(self) -> WanVAE:
        """The video autoencoder, newly loaded."""
