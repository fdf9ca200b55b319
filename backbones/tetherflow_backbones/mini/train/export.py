"""Stage `export`: writes the files that ship, with a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import attrs

from tetherflow_backbones.mini.config import Sizes
from tetherflow_backbones.mini.scenes import COLOURS, FPS, SHAPES
from tetherflow_backbones.mini.train.denoiser import Denoiser
from tetherflow_backbones.mini.train.run import say
from tetherflow_backbones.mini.weights import FILES, load_vae, read_json, sha256

STAGES = ("vae", "latents", "teacher", "distill")

CARD = """# The miniature: model card

A causal video diffusion model small enough to ship: the transformer of Wan2.1 and Self-Forcing at
{parameters:.1f} M parameters, a causal video autoencoder (diffusers' `AutoencoderKLWan`) at
{vae_parameters:.1f} M, and an encoder of words. It draws {frame}x{frame} video, 16 frames a second: two
bouncing shapes on a gradient. It is for demonstrations, tests and measurements of cache policies only.

- **Data**: rendered by `tetherflow_backbones.mini.scenes`, no files and no people: {shapes} in
  {colours}. Seeds from 2^31 on are held out.
- **Training**: `python -m tetherflow_backbones.mini.train`; teacher forcing on clean context only, no long
  rollouts; then a four-step student regressed onto the teacher's ODE endpoints. {source}
- **Sampling**: noise levels 1, 0.9375, 0.833, 0.625 with fresh noise, then the context pass at 0; chunks of
  {chunk_frames} latent frames, clips of {latent_frames} in training.
- **Quality**: {note}
- **Format**: safetensors in float16; nothing in these files is code. Licence: Apache-2.0, as the project.

| stage | what was run |
|---|---|
{stages}

| file | bytes | sha256 |
|---|---|---|
{files}
"""


def export(sizes: Sizes, work: Path, name: str, out: Path, note: str) -> None:
    """Write a model from a working folder as the packaged files.

    Args:
        sizes: Shapes of the miniature.
        work: Folder with the model, the autoencoder and the stages' records.
        name: `student`, or `teacher` to ship an undistilled model.
        out: Folder to write; `mini/weights` of a source tree is what the package brings along.
        note: What the card says of the model's quality, in a sentence or two.
    """
    out.mkdir(parents=True, exist_ok=True)
    denoiser = Denoiser.load(sizes.transformer, work, name)
    denoiser.export(out)
    load_vae(work)  # refuse to ship what does not load
    shutil.copyfile(work / "vae.safetensors", out / "vae.safetensors")
    records = {stage: found for stage in STAGES if (found := _record(work, stage)) is not None}
    hashes = {file: sha256(out / file) for file in FILES}
    config = {
        "format": 1,
        "source": name,
        "frame": sizes.frame,
        "fps": FPS,
        "chunk_frames": sizes.chunk_frames,
        "latent_frames": sizes.latent_frames,
        "transformer": attrs.asdict(sizes.transformer),
        "vae": read_json(work / "vae.json"),
        "records": records,
        "sha256": hashes,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    vae_parameters = sum(p.numel() for p in load_vae(work).parameters())
    (out / "README.md").write_text(_card(sizes, denoiser, vae_parameters, name, records, hashes, out, note))
    total = sum((out / file).stat().st_size for file in FILES)
    say(f"exported {name} to {out}: {total / 1e6:.2f} MB")


def _record(work: Path, stage: str) -> dict[str, Any] | None:
    path = work / f"{stage}.record.json"
    return read_json(path) if path.exists() else None


def _card(
    sizes: Sizes,
    denoiser: Denoiser,
    vae_parameters: int,
    name: str,
    records: dict[str, dict[str, Any]],
    hashes: dict[str, str],
    out: Path,
    note: str,
) -> str:
    rows = [
        f"| `{stage}` | {', '.join(f'{key} {_plain(value)}' for key, value in facts.items())} |"
        for stage, facts in records.items()
    ]
    files = [f"| `{file}` | {(out / file).stat().st_size} | `{digest}` |" for file, digest in hashes.items()]
    return CARD.format(
        parameters=sum(p.numel() for p in denoiser.parameters()) / 1e6,
        vae_parameters=vae_parameters / 1e6,
        frame=sizes.frame,
        shapes=", ".join(f"{shape}s" for shape in SHAPES),
        colours=", ".join(COLOURS),
        source=f"These weights are the {name}'s moving average.",
        note=note,
        chunk_frames=sizes.chunk_frames,
        latent_frames=sizes.latent_frames,
        stages="\n".join(rows),
        files="\n".join(files),
    )


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
