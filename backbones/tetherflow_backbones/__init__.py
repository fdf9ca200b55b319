"""Backbones that ship with Tetherflow, registered through the public `tetherflow.backbones` entry points."""
