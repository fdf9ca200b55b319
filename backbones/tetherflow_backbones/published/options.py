"""Options of the published models' backbones."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from tetherflow.backbone import BackboneOptions
from tetherflow_backbones.causal_wan import Architecture
from tetherflow_backbones.causal_wan.checkpoint import Weights

Size = Annotated[int, Field(ge=1)]
Step = Annotated[int, Field(ge=1, le=1000)]


class Sizes(BaseModel):
    """Sizes of the transformer; the defaults are Wan2.1-T2V-1.3B's (see `Architecture`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: Size = Field(default=1536, description="Width of the residual stream.")
    ffn_dim: Size = Field(default=8960, description="Hidden width of the feed-forward layers.")
    num_heads: Size = Field(default=12, description="Attention heads.")
    num_layers: Size = Field(default=30, description="Transformer blocks.")
    freq_dim: Size = Field(default=256, description="Width of the time step's sinusoids.")
    text_dim: Size = Field(default=4096, description="Width of a prompt token's embedding.")
    text_len: Size = Field(default=512, description="Tokens that a prompt is padded to.")
    in_dim: Size = Field(default=16, description="Channels of a latent frame.")
    out_dim: Size = Field(default=16, description="Channels of a flow.")
    patch_size: tuple[Size, Size, Size] = Field(
        default=(1, 2, 2), description="Frames, rows and columns of latents that make one token."
    )
    eps: float = Field(default=1e-6, gt=0, description="Added to variances before they divide.")

    @model_validator(mode="after")
    def _must_fit_together(self) -> Self:
        self.architecture()
        return self

    def architecture(self) -> Architecture:
        """These sizes as the transformer takes them.

        Raises:
            ValueError: They do not fit together.
        """
        return Architecture(**self.model_dump())


class PublishedOptions(BackboneOptions):
    """Options of a published model; each checkpoint has defaults of its own."""

    folder: Path | None = Field(
        default=None,
        description="Folder that `tetherflow fetch` fills; its usual one if omitted. Paths come first.",
    )
    transformer: Path | None = Field(
        default=None, description="Checkpoint of the transformer; the published one if omitted."
    )
    weights: Weights = Field(
        default="auto",
        description="Of several in the checkpoint: the moving average, the last ones, or auto.",
    )
    lora: Path | None = Field(
        default=None,
        description="Adapter that is merged into the transformer; the checkpoint's own, if it has one, where "
        "neither an adapter nor a transformer is named.",
    )
    lora_alpha: float | None = Field(
        default=None,
        gt=0,
        description="The adapter's scale α, which acts as α / rank; if omitted, the rank, and 256 for "
        "longlive's own adapter.",
    )
    text_encoder: Path | None = Field(
        default=None, description="Checkpoint of UMT5-XXL, as Wan2.1 or transformers publish it."
    )
    tokenizer: Path | None = Field(
        default=None, description="The text encoder's tokenizer.json, or its folder."
    )
    vae: Path | None = Field(
        default=None, description="Wan2.1_VAE.pth, or diffusers' folder of the video autoencoder."
    )
    vae_precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Type of the video autoencoder; auto is the transformer's, as published."
    )
    architecture: Sizes = Field(
        default=Sizes(), description="Sizes of the transformer; Wan2.1-T2V-1.3B's by default."
    )
    latent_size: tuple[Size, Size] = Field(
        default=(60, 104), description="Rows and columns of a latent frame, an eighth of the video's."
    )
    steps: tuple[Step, ...] = Field(
        default=(1000, 750, 500, 250),
        min_length=1,
        description="Denoising steps of 1000, first to last.",
    )
    warp: bool = Field(default=True, description="Whether the steps are warped by the shift.")
    shift: float = Field(default=5.0, gt=0, description="Shift s of the noise levels, su / (1 + (s - 1)u).")
    context_timestep: float = Field(
        default=0.0, ge=0, le=1000, description="Time step of the context pass; 0 is clean."
    )
    chunk_frames: int = Field(default=3, ge=1, description="Latent frames denoised together.")

    @model_validator(mode="after")
    def _must_split_into_patches(self) -> Self:
        self.architecture.architecture().grid(*self.latent_size)
        return self


def with_defaults(**defaults: Any) -> type[PublishedOptions]:
    """The options with other defaults, for a checkpoint that was trained otherwise."""
    fields: dict[str, Any] = {}
    for name, default in defaults.items():
        field = copy(PublishedOptions.model_fields[name])
        field.default = default
        fields[name] = (field.annotation, field)
    return create_model("Options", __base__=PublishedOptions, __doc__=PublishedOptions.__doc__, **fields)
