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
from tetherflow_backbones.mini.train.devices import own_device, rank, world
from tetherflow_backbones.mini.train.run import record, say
from tetherflow_backbones.mini.weights import load_vae, read_json
from tetherflow_backbones.wan_vae import WanVAE
from tetherflow_backbones.wan_vae_whole import WholeClip

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
        """Read what the stage left in `work`, all shards of it."""
        shards = read_json(work / "latents.record.json")["devices"]
        parts = [load_file(_shard(work, index), device=str(device)) for index in range(shards)]
        return cls(torch.cat([p["latents"] for p in parts]), torch.cat([p["ids"] for p in parts]).long())

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
    return ids.masked_fill(torch.rand((count, 1), generator=generator, device=device) < 0.1, PAD)


def _shard(work: Path, index: int) -> Path:
    """The clips that one process encoded."""
    return work / f"pool-{index}.safetensors"


@torch.no_grad()
def encode_pool(
    sizes: Sizes, work: Path, clips: int, seed: int, minutes: float | None, batch: int, compile_: bool
) -> None:
    """Run the stage; leaves a `pool-RANK.safetensors` for each process in `work`.

    Args:
        sizes: Shapes of the miniature.
        work: Folder with the trained autoencoder.
        clips: Clips wanted, of all processes together.
        seed: First of the scenes' seeds, in thousands of millions.
        minutes: Stop with what is there after this time.
        batch: Clips encoded at once.
        compile_: Whether to compile the encoder.
    """
    device = own_device()
    cuda = device.type == "cuda"
    network = load_vae(work).to(device)
    if cuda:
        torch.backends.cudnn.benchmark = True
        network = network.half()
    vae, whole = WanVAE(network), WholeClip(network)
    if compile_:
        whole.compile()
    weight = next(network.parameters())
    # The processes take neighbouring stretches of the seeds.
    wanted = len(range(rank(), clips, world()))
    first = seed * 1_000_000_007 + rank() * -(-clips // world())
    latents = torch.empty((wanted, sizes.latent_frames, *sizes.latent), dtype=torch.float16, device=device)
    begun = time.monotonic()
    done = 0
    while done < wanted:
        count = min(batch, wanted - done)
        scenes = sample_scenes(training_seeds(first + done, count, device))
        video = render(scenes, sizes.video_frames, sizes.frame).mul(2).sub(1).transpose(1, 2)
        mean, _ = whole.encode(video.to(weight.dtype))
        latents[done : done + count] = vae.normalise(mean.float())
        done += count
        if done % (16 * batch) == 0 or done == wanted:
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
    scenes = sample_scenes(training_seeds(first, done))
    sentences = [tokenise(scenes.prompts(t), sizes.transformer.text_len) for t in range(len(TEMPLATES))]
    ids = torch.stack(sentences, dim=1).to(torch.int16)
    save_file({"latents": kept.cpu().contiguous(), "ids": ids.contiguous()}, _shard(work, rank()))
    if rank() == 0:
        seconds = round(time.monotonic() - begun, 1)
        record(work / "latents.record.json", {"clips": min(clips, done * world()), "seconds": seconds})
