"""What a backbone adapter provides: a causal video diffusion model behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import attrs
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tetherflow.cache.interfaces import CacheShape, Positions, Rotary
from tetherflow.cache.layout import Layout
from tetherflow.errors import KernelError, TetherflowError
from tetherflow.tuning import Tunable, Tuning
from tetherflow.weights.published import PublishedFile


@attrs.frozen
class SamplerSettings:
    """The few-step schedule of a backbone (Self-Forcing, arXiv 2506.08009, section 3.2).

    Attributes:
        steps: denoising steps among 1000, first to last.
        shift: time shift of the noise levels.
        warp: whether the shift applies to the steps, as Self-Forcing's own configuration does.
        context_timestep: noise level (0..1000) at which the context pass runs.
        chunk_frames: latent frames denoised together.
    """

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    warp: bool = True
    context_timestep: float = 0.0
    chunk_frames: int = 3


class BackboneOptions(BaseModel):
    """Options of a backbone, written beside `use:` in a recipe; subclass it with the adapter's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


@attrs.frozen
class CacheUse:
    """How a recipe would use a backbone's cache.

    Attributes:
        policies: names of the stage plugins, in the order of the stages.
        layout: the cache's regions.
        positions: key positions.
        chunk_frames: latent frames denoised together.
    """

    policies: tuple[str, ...]
    layout: Layout
    positions: Positions
    chunk_frames: int


class VideoEncoder(Protocol):
    """Encodes one video's frames as they come."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Encode the next frames.

        Args:
            frames: uint8 RGB `[B, n, 3, height, width]`; n is 1 + 4 (F − 1) in the first call and 4 F in
                later ones.

        Returns:
            `[B, F, C, H, W]`, the latents of the next F latent frames, as of the whole video encoded at once.
        """
        ...


class VideoDecoder(Protocol):
    """Decodes one rollout's latents as they come."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Decode the next latents.

        Args:
            latents: `[B, F, C, H, W]`, the next F latent frames.

        Returns:
            uint8 RGB `[B, n, 3, height, width]`; n is 1 + 4 (F − 1) in the first call and 4 F in later ones.
        """
        ...


class Predictor(Protocol):
    """Predicts the flow of noisy latents, attending through a cache."""

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Any, cache: Any) -> Tensor:
        """Flow of noisy latents `[B, F, C, H, W]` at timesteps `[B, F]` (0..1000), of the same shape."""
        ...


class Transformer(Predictor, Protocol):
    """The denoising transformer."""

    def prepare_text(self, context: Tensor) -> Any:
        """Cross-attention keys and values of prompt embeddings `[B, text_len, text_dim]`."""


@runtime_checkable
class Remembering(Protocol):
    """A transformer that can spare what a context pass computes after its last keys and values."""

    def remember(self, latents: Tensor, timesteps: Tensor, text: Any, cache: Any) -> None:
        """Take clean latents into a `CacheEngine` as calling does, with its `keep` in the last layer."""
        ...


def remember(model: Predictor, latents: Tensor, timesteps: Tensor, text: Any, cache: Any) -> None:
    """Take clean latents into the cache in a context pass whose flow nobody needs."""
    if isinstance(model, Remembering):
        model.remember(latents, timesteps, text, cache)
    else:
        model(latents, timesteps, text, cache)


class Backbone(ABC):
    """A causal video diffusion model: transformer, rotary embedding, text encoder and video autoencoder.

    An adapter registers its class under the entry point group `tetherflow.backbones`. Its constructor loads
    the weights and raises `WeightsError` if they are missing, truncated or of another architecture.

    Args:
        options: validated options of the adapter.
        device: where the model runs.
        dtype: type of the transformer's weights and of the cache.
        parity: whether to follow the published code's order of operations, for golden traces.
    """

    Options: ClassVar[type[BackboneOptions]] = BackboneOptions
    sampler: SamplerSettings = SamplerSettings()
    fps: int = 16

    @abstractmethod
    def __init__(
        self,
        options: BackboneOptions,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        parity: bool = False,
    ) -> None: ...

    @classmethod
    def published_files(cls) -> tuple[PublishedFile, ...]:
        """The files that `tetherflow fetch` gets for it; none if it brings its weights along."""
        return ()

    @classmethod
    def advice(cls, use: CacheUse) -> list[str]:
        """What speaks against using its cache so: one sentence each, shown as warnings before a run."""
        return []

    @property
    @abstractmethod
    def transformer(self) -> Transformer:
        """The denoising transformer."""

    @property
    @abstractmethod
    def rotary(self) -> Rotary:
        """The rotary embedding of its queries and keys."""

    @property
    @abstractmethod
    def cache_shape(self) -> CacheShape:
        """Layers, heads and tokens of its cache."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent frame."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts, `[B, text_len, text_dim]`, padding zeroed."""

    def expect_prompts(self, prompts: Sequence[str]) -> None:  # noqa: B027 - most encoders stay in memory
        """Be told of prompts that will be encoded, to do it while the text encoder is in memory.

        Called before `encode_prompts` with all that is known to come; does nothing by default.
        """

    @abstractmethod
    def encoder(self) -> VideoEncoder:
        """A new streaming encoder, for one video."""

    @abstractmethod
    def decoder(self) -> VideoDecoder:
        """A new streaming decoder, for one rollout."""

    @property
    def decoder_memory(self) -> int | None:
        """Latent frames after which a decoder has forgotten where it began; None if it never does.

        A new decoder may then begin with any latent frame: the video frames of that many latent frames are
        its own, and all that follow are those of a decoder that began earlier.
        """
        return None

    @abstractmethod
    def weights_digest(self) -> str:
        """SHA-256 over the weight files, hexadecimal; it identifies the model in a run's lock."""

    def rest(self) -> None:  # noqa: B027 - most adapters are small enough to stay
        """Take off the device what denoising does not need: text encoder, video autoencoder.

        Each comes back by itself when it is used. Called in low-memory mode; does nothing by default.
        """

    def tune(self, tuning: Tuning) -> None:
        """Compute as a recipe's runtime asks: by default, hand that to the transformer and rotary embedding.

        Raises:
            KernelError: Neither takes it, or the device cannot.
        """
        if tuning.products != "precision" and not isinstance(self.transformer, Tunable):
            name = type(self).__name__
            raise KernelError(f"{name} has no {tuning.products} products; use runtime.matmul: precision")
        for part in (self.transformer, self.rotary):
            if isinstance(part, Tunable):
                part.tune(tuning)

    def reference_clips(self, prompts: Sequence[str], each: int, frames: int) -> Iterator[Tensor]:
        """Held-out real clips to judge quality against, each uint8 `[frames, 3, height, width]`.

        Args:
            prompts: what they show.
            each: how many different clips of each prompt; they come prompt after prompt.
            frames: length of a clip.

        Raises:
            TetherflowError: The backbone ships no reference.
            PromptError: It has no clip of a prompt.
        """
        raise TetherflowError(f"{type(self).__name__} ships no reference clips to judge quality against")

    def sample_prompts(self, count: int) -> list[str]:
        """Held-out prompts for evaluation.

        Raises:
            TetherflowError: The backbone ships no prompts.
        """
        raise TetherflowError(f"{type(self).__name__} ships no prompts; give prompts in the recipe")
