"""Stage `latents`: a pool of encoded clips with their prompts, from which the later stages draw."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tetherflow_backbones.mini.config import Sizes
from tetherflow_backbones.mini.scenes import COLOURS, SHAPES, TEMPLATES, render, sample_scenes, training_seeds
from tetherflow_backbones.mini.text import PAD, UNKNOWN, tokenise
from tetherflow_backbones.mini.train.run import record, say
from tetherflow_backbones.mini.weights import load_vae
from tetherflow_backbones.wan_vae import WanVAE, encode_moments

_SAID = UNKNOWN + len(COLOURS) + len(SHAPES)
"""Words up to this row of the vocabulary say what is seen; those after it only fill."""


@attrs.frozen
class Pool:
    """Encoded training clips.

    Attributes:
        latents: Normalised latents, float16 `[N, F, C, H, W]`.
        ids: Words of each clip's prompt in every template, int64 `[N, templates, text_len]`.
    """

    latents: Tensor
    ids: Tensor

    @classmethod
    def load(cls, work: Path, device: torch.device) -> Pool:
        """Read what the stage left in `work`."""
        tensors = load_file(work / "pool.safetensors", device=str(device))
        return cls(tensors["latents"], tensors["ids"].long())

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random clips, float32 `[count, F, C, H, W]`, and their words, disturbed, `[count, text_len]`."""
        device = self.latents.device
        rows = torch.randint(len(self.latents), (count,), generator=generator, device=device)
        template = torch.randint(self.ids.shape[1], (count,), generator=generator, device=device)
        return self.latents[rows].float(), disturbed(self.ids[rows, template], generator)


def disturbed(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Words `[B, L]` as people might type them: some unknown, one put in between, a few prompts empty."""
    device, (count, length) = ids.device, ids.shape
    chance = torch.rand((count, length), generator=generator, device=device)
    unknown = (ids != PAD) & (chance < torch.where(ids > _SAID, 0.08, 0.015))
    ids = ids.masked_fill(unknown, UNKNOWN)
    at = torch.randint(length // 2, (count, 1), generator=generator, device=device)
    at = at.masked_fill(torch.rand((count, 1), generator=generator, device=device) < 0.7, length)
    place = torch.arange(length, device=device)
    ids = torch.where(place == at, UNKNOWN, torch.where(place > at, ids.roll(1, dims=1), ids))
    return ids.masked_fill(torch.rand((count, 1), generator=generator, device=device) < 0.04, PAD)


@torch.no_grad()
def encode_pool(sizes: Sizes, work: Path, clips: int, seed: int, minutes: float | None, batch: int) -> None:
    """Run the stage; leaves `pool.safetensors` in `work`.

    Args:
        sizes: Shapes of the miniature.
        work: Folder with the trained autoencoder.
        clips: Clips wanted.
        seed: First of the scenes' seeds, in thousands of millions.
        minutes: Stop with what is there after this time.
        batch: Clips encoded at once.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    network = load_vae(work).to(device)
    if cuda:
        torch.backends.cudnn.benchmark = True
        network = network.half()
    vae = WanVAE(network)
    weight = next(network.parameters())
    latents = torch.empty((clips, sizes.latent_frames, *sizes.latent), dtype=torch.float16, device=device)
    begun = time.monotonic()
    done = 0
    while done < clips:
        count = min(batch, clips - done)
        scenes = sample_scenes(training_seeds(seed * 1_000_000_007 + done, count, device))
        video = render(scenes, sizes.video_frames, sizes.frame).mul(2).sub(1).transpose(1, 2)
        mean, _ = encode_moments(network, video.to(weight.dtype))
        latents[done : done + count] = vae.normalise(mean.float())
        done += count
        if done % (16 * batch) == 0 or done == clips:
            if cuda:
                torch.cuda.synchronize()
            say(f"{done} clips encoded in {time.monotonic() - begun:.1f} s")
            if minutes is not None and time.monotonic() - begun > 60 * minutes:
                break
    kept = latents[:done]
    if not bool(kept.isfinite().all()):
        raise FloatingPointError("some latents are not finite")
    spread = kept[:1024].float()
    say(f"pool: {list(kept.shape)}, mean {float(spread.mean()):.3f}, std {float(spread.std()):.3f}")
    scenes = sample_scenes(training_seeds(seed * 1_000_000_007, done))
    sentences = [tokenise(scenes.prompts(t), sizes.transformer.text_len) for t in range(len(TEMPLATES))]
    ids = torch.stack(sentences, dim=1).to(torch.int16)
    save_file({"latents": kept.cpu().contiguous(), "ids": ids.contiguous()}, work / "pool.safetensors")
    record(work / "latents.record.json", {"clips": done, "seconds": round(time.monotonic() - begun, 1)})
