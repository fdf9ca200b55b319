"""The bundled miniature: a small causal video diffusion model in Self-Forcing's architecture."""

from tetherflow_backbones.mini.backbone import Mini

__all__ = ["Mini"]
