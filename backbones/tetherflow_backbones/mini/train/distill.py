"""Stage `distill`: a student that reaches in one step where the teacher's differential equation ends.

For each of the sampler's noise levels the student regresses, in clean latents, the endpoint of the teacher's
ODE from the same noisy chunk and the same clean context (the ODE initialisation of arXiv 2412.07772, section
4.3). Part of the noisy chunks come from the student's own few-step sampling, as they will in use.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tetherflow_backbones.mini.config import Sizes
from tetherflow_backbones.mini.train.attention import CleanPass, NoisyPass, Turn
from tetherflow_backbones.mini.train.denoiser import STEPS, Denoiser, noised, shifted
from tetherflow_backbones.mini.train.pool import Pool
from tetherflow_backbones.mini.train.run import Averaged, Budget, fit, record, say
from tetherflow_backbones.mini.train.teacher import chunk_tokens, teacher_forcing

Context = list[tuple[Tensor, Tensor]]

FIRST_CHUNKS = 5
"""How many times more clips a step takes when it learns first chunks alone, which are a seventh as long."""


class DistillStage(Averaged):
    """Regresses the student's clean estimate onto the teacher's endpoint.

    Args:
        network: The student, which starts as the teacher.
        teacher: The teacher, frozen.
        sizes: Shapes of the miniature.
        pool: Clips to learn from.
        clips: Clips a step.
        rate: Peak learning rate.
        seed: Of clips, levels and noise.
        compile_: Whether to compile both networks' blocks.
        ode_steps: Steps of the teacher's integration.
        own: Fraction of steps whose noisy chunks the student made itself.
    """

    def __init__(
        self,
        network: Denoiser,
        teacher: Denoiser,
        sizes: Sizes,
        pool: Pool,
        clips: int,
        rate: float,
        seed: int,
        compile_: bool,
        ode_steps: int,
        own: float,
    ) -> None:
        super().__init__(network, rate, decay=0.998, seed=seed)
        self.teacher = teacher.requires_grad_(False).eval()
        self.sizes = sizes
        self.pool = pool
        self.clips = clips
        self.ode_steps = ode_steps
        self.own = own
        device = pool.latents.device
        self.turn = Turn(sizes.transformer, sizes.latent[1:], sizes.latent_frames, device)
        self.chunk = chunk_tokens(sizes)
        self.attention = teacher_forcing(sizes, device)
        if compile_:
            network.compile_blocks()
            teacher.compile_blocks()

    def see(self, network: nn.Module, clean: Tensor, ids: Tensor) -> Context:
        """Keys and values that a clean clip leaves for its noisy chunks."""
        seen = CleanPass(self.turn, self.chunk)
        network(clean, torch.zeros_like(clean[:, :, 0, 0, 0]), ids, seen)
        return seen.kept()

    def continued(
        self, network: nn.Module, latents: Tensor, levels: Tensor, ids: Tensor, context: Context
    ) -> Tensor:
        """Flow of noisy chunks in a clean context."""
        flow: Tensor = network(latents, levels, ids, NoisyPass(self.turn, self.chunk, context))
        return flow

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Robust error of the student's clean estimate."""
        generator = self.generator()
        step = self.trainer.global_step
        # A first chunk has no context and so most to decide; every other step learns nothing else.
        first = step % 2 == 1
        clean, ids = self.pool.draw(self.clips * (FIRST_CHUNKS if first else 1), generator)
        if first:
            clean = clean[:, : self.sizes.chunk_frames]
        chunks = clean.shape[1] // self.sizes.chunk_frames
        which = torch.randint(len(STEPS), (clean.shape[0], chunks), generator=generator, device=clean.device)
        which = which.repeat_interleave(self.sizes.chunk_frames, dim=1)
        levels = torch.tensor(STEPS, device=clean.device)[which]
        # Drawn on the CPU, from the step alone: a branch on a device value would stall.
        drawn = float(torch.rand((), generator=torch.Generator().manual_seed(self.seed * 7919 + step)))
        with torch.no_grad():
            if drawn < self.own:
                noisy = self.sampled(clean, which, ids, generator)
            else:
                noise = torch.randn(clean.shape, generator=generator, device=clean.device)
                noisy = noised(clean, noise, levels)
            target = self.endpoint(clean, noisy, levels, ids)
        both = torch.cat([clean, noisy], dim=1)
        flow = self.network(both, torch.cat([torch.zeros_like(levels), levels], dim=1), ids, self.attention)
        estimate = noisy - levels[:, :, None, None, None] * flow[:, clean.shape[1] :]
        # Near its minimum like a square, further out like an absolute value: what the student cannot
        # resolve becomes a median, which is sharper than a mean.
        loss: Tensor = ((estimate - target).square() + 0.1**2).sqrt().sub(0.1).mean()
        return loss

    def sampled(self, clean: Tensor, which: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """What the student's sampler holds before step `which` `[B, F]`, every chunk in its clean context."""
        context = self.see(self.network, clean, ids)
        latents = torch.randn(clean.shape, generator=generator, device=clean.device)
        kept = latents
        for index in range(1, len(STEPS)):
            levels = torch.full(which.shape, STEPS[index - 1], device=clean.device)
            flow = self.continued(self.network, latents, levels, ids, context)
            noise = torch.randn(clean.shape, generator=generator, device=clean.device)
            latents = torch.lerp(latents - STEPS[index - 1] * flow, noise, STEPS[index])
            kept = torch.where((which >= index)[:, :, None, None, None], latents, kept)
        return kept

    def endpoint(self, clean: Tensor, noisy: Tensor, levels: Tensor, ids: Tensor) -> Tensor:
        """Where the teacher's ODE ends from noisy latents, in steps even in times shifted by 3.

        Second order at one evaluation a step: the flow is extrapolated to mid-step (Adams-Bashforth).
        """
        context = self.see(self.teacher, clean, ids)
        start = levels / (3 - 2 * levels)  # the time whose level, shifted by 3, is the chunk's
        latents, before, length_before = noisy, None, None
        for index in range(self.ode_steps):
            level = shifted(start * (1 - index / self.ode_steps), 3.0)
            length = shifted(start * (1 - (index + 1) / self.ode_steps), 3.0) - level
            flow = self.continued(self.teacher, latents, level, ids, context)
            middle = flow
            if before is not None and length_before is not None:
                middle = flow + (length / length_before / 2)[:, :, None, None, None] * (flow - before)
            latents = latents + length[:, :, None, None, None] * middle
            before, length_before = flow, length
        return latents


def train_student(
    sizes: Sizes,
    work: Path,
    budget: Budget,
    seed: int,
    clips: int,
    rate: float,
    resume: bool,
    compile_: bool,
    ode_steps: int,
    own: float,
) -> None:
    """Run the stage; leaves `student.safetensors` and a record in `work`."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Denoiser.load(sizes.transformer, work, "teacher").to(device)
    student = Denoiser.load(sizes.transformer, work, "teacher").to(device)
    pool = Pool.load(work, device)
    say(f"student: {len(pool.latents)} clips")
    stage = DistillStage(student, teacher, sizes, pool, clips, rate, seed, compile_, ode_steps, own)
    pace = fit(stage, budget, work / "student.ckpt", resume)
    if not isinstance(stage.average, Denoiser):
        raise TypeError(f"the average is a {type(stage.average).__name__}")
    stage.average.save(work, "student")
    facts = {
        "steps": stage.trainer.global_step,
        "seconds": round(pace.seconds, 1),
        "seed": seed,
        "clips_a_step": clips,
        "ode_steps": ode_steps,
        "own": own,
        "loss": pace.loss,
    }
    record(work / "distill.record.json", facts)
