"""A published model as a backbone: transformer, text encoder and video autoencoder from the user's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor

from tetherflow.backbone import CacheUse, SamplerSettings
from tetherflow.errors import WeightsError
from tetherflow.weights import PublishedFile, weights_folder
from tetherflow.weights.folder import digest
from tetherflow_backbones.causal_wan.backbone import CausalWanBackbone
from tetherflow_backbones.causal_wan.checkpoint import load_transformer
from tetherflow_backbones.published.options import PublishedOptions
from tetherflow_backbones.published.pins import pins
from tetherflow_backbones.published.text import PromptEncoder, tokenizer_file
from tetherflow_backbones.published.training import Training
from tetherflow_backbones.published.vae import load_vae
from tetherflow_backbones.tensor_files import files_of
from tetherflow_backbones.wan_vae import WanVAE

WAN: Final = "Wan-AI/Wan2.1-T2V-1.3B"
TEXT_ENCODER: Final = f"{WAN}/models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER: Final = f"{WAN}/google/umt5-xxl/tokenizer.json"
VAE: Final = f"{WAN}/Wan2.1_VAE.pth"


class PublishedWan(CausalWanBackbone):
    """Base of the backbones that run published weights; a checkpoint is a subclass with these attributes.

    The transformer is loaded at once, the text encoder while it is used, and the video autoencoder when it is
    first needed: a program that brings embeddings and keeps latents needs neither.

    Attributes:
        Options: its options, with its own defaults.
        checkpoint: the name in recipes, for messages.
        transformer_file: the transformer among the published files (`pins.yaml`).
        lora_file: the adapter that belongs to it; None if there is none.
        lora_alpha: that adapter's scale α; None for its rank.
        training: the cache with which it was trained.
    """

    Options = PublishedOptions
    checkpoint: ClassVar[str]
    transformer_file: ClassVar[str]
    lora_file: ClassVar[str | None] = None
    lora_alpha: ClassVar[float | None] = None
    training: ClassVar[Training] = Training()

    def __init__(
        self,
        options: PublishedOptions,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        parity: bool = False,
    ) -> None:
        self.options = options
        self.sampler = SamplerSettings(
            steps=options.steps,
            shift=options.shift,
            warp=options.warp,
            context_timestep=options.context_timestep,
            chunk_frames=options.chunk_frames,
        )
        self._device, self._dtype = device, dtype
        transformer = load_transformer(
            self._part(options.transformer, self.transformer_file, "transformer"),
            options.architecture.architecture(),
            device=device,
            dtype=dtype,
            weights=options.weights,
            lora=self._lora(),
            lora_alpha=self._lora_alpha(),
        )
        self._use(transformer, options.latent_size, parity=parity)
        self._prompts: PromptEncoder | None = None

    @classmethod
    def published_files(cls) -> tuple[PublishedFile, ...]:
        """The transformer, its adapter if it has one, and Wan2.1's text encoder and video autoencoder."""
        own = [name for name in (cls.transformer_file, cls.lora_file) if name is not None]
        return tuple(file for name, file in pins().items() if name in own or file.repo == WAN)

    @classmethod
    def advice(cls, use: CacheUse) -> list[str]:
        """What speaks against a use of its cache that it was not trained for."""
        default = cls.Options.model_fields["chunk_frames"].default
        return cls.training.advice(cls.checkpoint, default, use)

    def expect_prompts(self, prompts: Sequence[str]) -> None:
        """Encode prompts that will come, so that the text encoder is loaded once for all of them."""
        self._encoder().expect(prompts)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts, `[B, text_len, text_dim]` in the transformer's type, padding zeroed."""
        return self._encoder().encode(prompts)

    def _encoder(self) -> PromptEncoder:
        if self._prompts is None:
            self._prompts = PromptEncoder(
                self._part(self.options.text_encoder, TEXT_ENCODER, "text_encoder"),
                self._part(self.options.tokenizer, TOKENIZER, "tokenizer"),
                text_len=self._transformer.arch.text_len,
                device=self._device,
                dtype=self._dtype,
            )
        return self._prompts

    def weights_digest(self) -> str:
        """SHA-256 over the files that are there, of the transformer and of what goes with it."""
        options, lora = self.options, self._lora()
        paths = [
            options.transformer or self._place(self.transformer_file),
            *([] if lora is None else [lora]),
            options.text_encoder or self._place(TEXT_ENCODER),
            options.vae or self._place(VAE),
        ]
        files = [file for path in paths if path.exists() for file in files_of(path)]
        tokenizer = tokenizer_file(options.tokenizer or self._place(TOKENIZER))
        return digest([*files, *([tokenizer] if tokenizer.is_file() else [])])

    def _load_autoencoder(self) -> WanVAE:
        dtypes = {"auto": self._dtype, "float32": torch.float32, "bfloat16": torch.bfloat16}
        path = self._part(self.options.vae, VAE, "vae")
        return load_vae(path, device=self._device, dtype=dtypes[self.options.vae_precision])

    def _lora(self) -> Path | None:
        """The adapter to merge: the user's, or the checkpoint's own if the transformer is, too."""
        if self.options.lora is not None or self.options.transformer is not None or self.lora_file is None:
            return self.options.lora
        return self._part(None, self.lora_file, "lora")

    def _lora_alpha(self) -> float | None:
        """The scale of the adapter to merge."""
        if self.options.lora_alpha is not None or self.options.lora is not None:
            return self.options.lora_alpha
        return self.lora_alpha

    def _place(self, name: str) -> Path:
        """Where a published file or folder belongs."""
        return (self.options.folder or weights_folder()) / name

    def _part(self, chosen: Path | None, name: str, option: str) -> Path:
        """Where a part of the model is.

        Raises:
            WeightsError: It is not there.
        """
        path = chosen or self._place(name)
        if not path.exists():
            hint = f"run `tetherflow fetch {self.checkpoint}`, or name the file with backbone.{option}"
            raise WeightsError(
                f"weights are missing: {path} does not exist; "
                + ("check the path" if chosen else hint + ", or its folder with backbone.folder")
            )
        return path
