"""Stage `preview`: samples a model in the plainest way and draws contact sheets, for a quick look."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tetherflow_backbones.mini.config import Sizes
from tetherflow_backbones.mini.scenes import held_out_seeds, sample_scenes
from tetherflow_backbones.mini.text import tokenise
from tetherflow_backbones.mini.train.attention import Turn
from tetherflow_backbones.mini.train.denoiser import STEPS, Denoiser, shifted
from tetherflow_backbones.mini.train.run import say
from tetherflow_backbones.mini.train.teacher import chunk_tokens
from tetherflow_backbones.mini.weights import load_vae
from tetherflow_backbones.wan_vae import WanVAE


class Window:
    """A cache of the first chunk and the latest ones, as many as a training clip has, at positions 0, 1, ….

    Args:
        turn: Rotary embedding of a clip.
        chunk: Tokens of a chunk.
        chunks: Chunks of a clip.
    """

    def __init__(self, turn: Turn, chunk: int, chunks: int) -> None:
        self.turn = turn
        self.chunk = chunk
        self.chunks = chunks
        self.committing = False
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from a chunk's tokens `[B, F*T, heads, D]`; keep its keys and values when committing."""
        query, key = query.to(value.dtype), key.to(value.dtype)
        kept = self._kept.setdefault(layer, [])
        if len(kept) >= self.chunks:
            del kept[1]
        keys = torch.cat([k for k, _ in kept] + [key], dim=1)
        values = torch.cat([v for _, v in kept] + [value], dim=1).transpose(1, 2)
        turned = self.turn(query, start=len(kept) * self.chunk)
        out = functional.scaled_dot_product_attention(turned, self.turn(keys), values)
        if self.committing:
            kept.append((key, value))
        return out.transpose(1, 2)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    sizes: Sizes,
    prompts: Sequence[str],
    chunks: int,
    seed: int,
    ode_steps: int | None = None,
) -> Tensor:
    """Generate latents.

    Args:
        denoiser: The model.
        sizes: Its shapes.
        prompts: B prompts.
        chunks: Chunks to generate.
        seed: Of the noise.
        ode_steps: Euler steps of a teacher; None for the few-step sampler.

    Returns:
        Latents `[B, chunks * 3, C, H, W]`.
    """
    device = next(denoiser.parameters()).device
    ids = tokenise(prompts, sizes.transformer.text_len).to(device)
    turn = Turn(sizes.transformer, sizes.latent[1:], sizes.latent_frames, device)
    window = Window(turn, chunk_tokens(sizes), sizes.latent_frames // sizes.chunk_frames)
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    if ode_steps is None:
        levels = (*STEPS, 0.0)
    else:
        levels = tuple(shifted(torch.linspace(1, 0, ode_steps + 1), 3.0).tolist())
    shape = (len(prompts), sizes.chunk_frames, *sizes.latent)
    done = []
    for _ in range(chunks):
        x = torch.randn(shape, generator=generator, device=device)
        window.committing = False
        for level, following in itertools.pairwise(levels):
            flow = denoiser(x, torch.full(shape[:2], level, device=device), ids, window)
            if ode_steps is None:
                noise = torch.randn(shape, generator=generator, device=device)
                x = torch.lerp(x - level * flow, noise, following)
            else:
                x = x + (following - level) * flow
        window.committing = True
        denoiser(x, torch.zeros(shape[:2], device=device), ids, window)
        done.append(x)
    return torch.cat(done, dim=1)


def preview(
    sizes: Sizes, work: Path, name: str, out: Path, count: int, chunks: int, ode_steps: int | None
) -> None:
    """Draw held-out prompts' first clip and the later course of their rollouts.

    Args:
        sizes: Shapes of the miniature.
        work: Folder with the model and the autoencoder.
        name: `teacher` or `student`.
        out: Folder for `NAME-clip.png` and `NAME-long.png`, rows of prompts, time running right.
        count: Prompts.
        chunks: Length of the long rollout.
        ode_steps: Euler steps of the teacher; None for the few-step sampler.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoiser = Denoiser.load(sizes.transformer, work, name).to(device).eval()
    vae = WanVAE(load_vae(work).to(device))
    prompts = sample_scenes(held_out_seeds(0, count)).prompts()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        latents = sample(denoiser, sizes, prompts, chunks, 0, ode_steps)
    frames = vae.decode(latents.float()).cpu()
    out.mkdir(parents=True, exist_ok=True)
    for row, prompt in enumerate(prompts):
        say(f"row {row}: {prompt}")
    write_png(out / f"{name}-clip.png", contact_sheet(frames[:, : sizes.video_frames], 11))
    write_png(out / f"{name}-long.png", contact_sheet(frames, 11))


def contact_sheet(frames: Tensor, columns: int) -> Tensor:
    """Frames uint8 `[B, n, 3, H, W]`, evenly spaced, as one image uint8 `[B*H, columns*W, 3]`."""
    at = torch.linspace(0, frames.shape[1] - 1, columns).round().long()
    return frames[:, at].permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def write_png(path: Path, image: Tensor) -> None:
    """Write an RGB image, uint8 `[H, W, 3]`."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in image)

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = block(b"IHDR", header) + block(b"IDAT", zlib.compress(rows)) + block(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    say(f"wrote {path}")
