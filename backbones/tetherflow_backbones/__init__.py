"""Backbones that ship with Tetherflow; they register through the public `tetherflow.backbones` entry points."""
