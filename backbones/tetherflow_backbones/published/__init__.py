"""Published models of the Self-Forcing family: their files, text encoder, video autoencoder and defaults."""

from tetherflow_backbones.published.backbone import PublishedWan
from tetherflow_backbones.published.options import PublishedOptions, with_defaults
from tetherflow_backbones.published.training import Training

__all__ = ["PublishedOptions", "PublishedWan", "Training", "with_defaults"]
