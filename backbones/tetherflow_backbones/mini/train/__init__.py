"""Trains the miniature: `python -m tetherflow_backbones.mini.train STAGE`.

Stages, each started by itself and resumable, each reading what the one before left in the working folder:
`vae` → `latents` → `teacher` → `distill` → `export`; `preview` shows what a model generates.
"""
