"""Stage `teacher`: flow matching with teacher forcing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tetherflow_backbones.mini.config import Sizes
from tetherflow_backbones.mini.train.attention import TeacherForcing, Turn
from tetherflow_backbones.mini.train.denoiser import STEPS, Denoiser, noised, shifted
from tetherflow_backbones.mini.train.devices import own_device, rank, world
from tetherflow_backbones.mini.train.pool import Pool
from tetherflow_backbones.mini.train.run import Averaged, Budget, fit, record, say


class TeacherStage(Averaged):
    """Regresses the flow of noised chunks that see the clean chunks before them (arXiv 2210.02747).

    Args:
        network: The denoiser.
        sizes: Shapes of the miniature.
        work: Folder for the result.
        pool: Clips to learn from.
        clips: Clips a step, on each device.
        rate: Peak learning rate.
        seed: Of clips, times and noise.
        muon: Whether hidden matrices take Muon's steps.
        compile_: Whether to compile the network's blocks.
        context_noise: Largest noise level of the clean half, drawn for each clip.
    """

    def __init__(
        self,
        network: Denoiser,
        sizes: Sizes,
        work: Path,
        pool: Pool,
        clips: int,
        rate: float,
        seed: int,
        muon: bool,
        compile_: bool,
        context_noise: float,
    ) -> None:
        super().__init__(network, rate, decay=0.999, seed=seed, muon=muon)
        self.sizes = sizes
        self.work = work
        self.pool = pool
        self.clips = clips
        self.context_noise = context_noise
        self.attention = teacher_forcing(sizes, pool.latents.device)
        if compile_:
            network.compile_blocks()

    def hand_on(self) -> None:
        """Write `teacher.safetensors`."""
        save_denoiser(self.average, self.work, "teacher")

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Error of the noisy half's flow."""
        generator = self.generator()
        clean, ids = self.pool.draw(self.clips, generator)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        levels = self.levels(clean.shape[0], generator)
        context = clean
        if self.context_noise > 0:
            most = torch.rand((clean.shape[0], 1), generator=generator, device=clean.device)
            dirt = torch.randn(clean.shape, generator=generator, device=clean.device)
            context = noised(clean, dirt, self.context_noise * most.expand(levels.shape))
        both = torch.cat([context, noised(clean, noise, levels)], dim=1)
        flow = self.network(both, torch.cat([torch.zeros_like(levels), levels], dim=1), ids, self.attention)
        loss: Tensor = (flow[:, clean.shape[1] :] - (noise - clean)).square().mean()
        return loss

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise level of each frame `[count, F]`, one a chunk: logit-normal, at times the sampler's."""
        chunk, frames, device = self.sizes.chunk_frames, self.sizes.latent_frames, generator.device
        shape = (count, frames // chunk)
        times = torch.sigmoid(1.2 * torch.randn(shape, generator=generator, device=device))
        steps = torch.tensor(STEPS, device=device)
        own = steps[torch.randint(len(STEPS), shape, generator=generator, device=device)]
        choose = torch.rand(shape, generator=generator, device=device) < 0.2
        return torch.where(choose, own, shifted(times, 3.0)).repeat_interleave(chunk, dim=1)


def save_denoiser(average: nn.Module, work: Path, name: str) -> None:
    """Write a stage's averaged denoiser as `NAME.safetensors`."""
    if not isinstance(average, Denoiser):
        raise TypeError(f"the average is a {type(average).__name__}")
    average.save(work, name)


def teacher_forcing(sizes: Sizes, device: torch.device) -> TeacherForcing:
    """Teacher-forced attention on whole clips."""
    turn = Turn(sizes.transformer, sizes.latent[1:], sizes.latent_frames, device)
    return TeacherForcing(turn, chunk_tokens(sizes))


def chunk_tokens(sizes: Sizes) -> int:
    """Tokens of a chunk."""
    rows, columns = sizes.transformer.grid(*sizes.latent[1:])
    return sizes.chunk_frames * rows * columns


def train_teacher(
    sizes: Sizes,
    work: Path,
    budget: Budget,
    seed: int,
    clips: int,
    rate: float,
    resume: bool,
    muon: bool,
    compile_: bool,
    context_noise: float,
) -> None:
    """Run the stage; leaves `teacher.safetensors` and a record in `work`."""
    torch.manual_seed(seed)
    device = own_device()
    network = Denoiser(sizes.transformer)
    network.initialise()
    count = sum(p.numel() for p in network.parameters())
    pool = Pool.load(work, device)
    say(f"teacher: {count / 1e6:.2f} M parameters, {len(pool.latents)} clips")
    stage = TeacherStage(
        network.to(device), sizes, work, pool, clips, rate, seed, muon, compile_, context_noise
    )
    pace = fit(stage, budget, work / "teacher.ckpt", resume)
    if rank() != 0:
        return
    stage.hand_on()
    facts = {
        "steps": stage.trainer.global_step,
        "seconds": round(pace.seconds, 1),
        "seed": seed,
        "clips_a_step": clips * world(),
        "rate": rate,
        "muon": muon,
        "clips": len(pool.latents),
        "parameters": count,
        "loss": pace.loss,
    }
    record(work / "teacher.record.json", facts)
