"""Tools to test backbones, policies and the engine with."""
