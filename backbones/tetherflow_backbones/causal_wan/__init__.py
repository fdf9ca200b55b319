"""The causal Wan transformer: Wan2.1's diffusion transformer, attending through a key-value cache."""

from tetherflow_backbones.causal_wan.architecture import Architecture
from tetherflow_backbones.causal_wan.block import AttentionCache
from tetherflow_backbones.causal_wan.rotary import WanRotary
from tetherflow_backbones.causal_wan.transformer import CausalWanTransformer, Prompts

__all__ = ["Architecture", "AttentionCache", "CausalWanTransformer", "Prompts", "WanRotary"]
