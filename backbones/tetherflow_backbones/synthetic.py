"""The `synthetic` backbone: Wan's shapes at random weights, to measure speed without a download."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tetherflow.backbone import BackboneOptions, SamplerSettings
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer
from tetherflow_backbones.causal_wan.backbone import CausalWanBackbone
from tetherflow_backbones.published.options import Size, Step
from tetherflow_backbones.wan_vae import WanVAE

Network = TypeVar("Network", bound=nn.Module)


class Synthetic(CausalWanBackbone):
    """Wan2.1's transformer and video autoencoder at random weights, for benchmarks: its videos show nothing.

    Time and memory do not depend on what weights say. It has no text encoder: embeddings are drawn at random.
    """

    class Options(BackboneOptions):
        """Options of the synthetic backbone; by default the shapes of Wan2.1-T2V-1.3B at 480x832."""

        dim: Size = Field(default=1536, description="Width of the transformer.")
        ffn_dim: Size = Field(default=8960, description="Hidden width of its feed-forward layers.")
        heads: Size = Field(default=12, description="Attention heads.")
        layers: Size = Field(default=30, description="Transformer blocks.")
        text_len: Size = Field(default=512, description="Tokens that a prompt is padded to.")
        prompt_tokens: Size = Field(
            default=160, description="Tokens of a prompt before padding; long prompts have about so many."
        )
        latent_size: tuple[Size, Size] = Field(
            default=(60, 104), description="Rows and columns of a latent frame, an eighth of the video's."
        )
        chunk_frames: Size = Field(default=3, description="Latent frames denoised together.")
        steps: tuple[Step, ...] = Field(
            default=(1000, 750, 500, 250),
            min_length=1,
            description="Denoising steps of 1000, first to last.",
        )
        vae_width: Size = Field(default=96, description="Width of the video autoencoder's first layer.")
        seed: int = Field(default=0, ge=0, description="Seed of the weights.")

    def __init__(
        self,
        options: Options,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        parity: bool = False,
    ) -> None:
        self.options = options
        self.sampler = SamplerSettings(chunk_frames=options.chunk_frames, steps=options.steps)
        self._device, self._dtype = device, dtype
        arch = Architecture(
            dim=options.dim,
            ffn_dim=options.ffn_dim,
            num_heads=options.heads,
            num_layers=options.layers,
            text_len=options.text_len,
        )
        generator = torch.Generator(device).manual_seed(options.seed)
        with torch.device("meta"):
            transformer = CausalWanTransformer(arch).to(dtype)
        self._use(_filled(transformer, device, generator), options.latent_size, parity=parity)
        self._generator = generator

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Random embeddings `[B, text_len, text_dim]`, each prompt's its own, padding zeroed."""
        arch = self._transformer.arch
        rows = [torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts]
        drawn = torch.stack([torch.randn(arch.text_len, arch.text_dim, generator=row) for row in rows])
        drawn[:, self.options.prompt_tokens :] = 0
        return drawn.to(self._device, self._dtype)

    def weights_digest(self) -> str:
        """SHA-256 of the options, which determine the weights on one kind of device."""
        return hashlib.sha256(self.options.model_dump_json().encode()).hexdigest()

    def _load_autoencoder(self) -> WanVAE:
        with torch.device("meta"):
            vae = WanVAE.from_config({"base_dim": self.options.vae_width})
        network = _filled(vae.network.to(self._dtype), self._device, self._generator)
        return WanVAE(network, vae.frames_per_call)


def _filled(module: Network, device: torch.device, generator: torch.Generator) -> Network:
    """A module from the meta device, on a device, with weights that keep the deviation of what they read."""
    module = module.to_empty(device=device).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1)
        else:
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    return module
