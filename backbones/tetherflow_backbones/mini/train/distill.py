"""Stage `distill`: a student that reaches in one step where the teacher's differential equation ends.

For each of the sampler's noise levels the student regresses, in clean latents, the endpoint of the teacher's
ODE from the same noisy chunk and the same clean context (the ODE initialisation of arXiv 2412.07772, section
4.3). Part of the noisy chunks come from the student's own few-step sampling, as they will in use.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from tetherflow_backbones.mini.config import Sizes
from tetherflow_backbones.mini.text import PAD
from tetherflow_backbones.mini.train.attention import CleanPass, FirstChunk, LayeredCache, NoisyPass, Turn
from tetherflow_backbones.mini.train.denoiser import STEPS, Denoiser, noised, shifted
from tetherflow_backbones.mini.train.devices import own_device, rank, world
from tetherflow_backbones.mini.train.pool import Pool
from tetherflow_backbones.mini.train.run import Averaged, Budget, fit, record, say
from tetherflow_backbones.mini.train.teacher import chunk_tokens, save_denoiser, teacher_forcing


@attrs.frozen
class Distilling:
    """How a student is distilled.

    Attributes:
        ode_steps: Steps of the teacher's integration.
        guidance: Weight of the prompt in the teacher's flow (classifier-free guidance, arXiv 2207.12598), 1
            for none. With more of it both shapes of a prompt appear.
        own: Fraction of steps whose noisy chunks the student's average made itself.
        first_every: Every so many steps learns first chunks alone; 0 for never.
        first_factor: How many times more clips such a step takes; a first chunk is a seventh of a clip.
    """

    ode_steps: int = 10
    guidance: float = 3.0
    own: float = 0.5
    first_every: int = 2
    first_factor: int = 5


class DistillStage(Averaged):
    """Regresses the student's clean estimate onto the teacher's endpoint.

    Args:
        network: The student, which starts as the teacher.
        teacher: The teacher, frozen.
        sizes: Shapes of the miniature.
        work: Folder for the result.
        pool: Clips to learn from.
        clips: Clips a step, on each device.
        rate: Peak learning rate.
        seed: Of clips, levels and noise.
        muon: Whether hidden matrices take Muon's steps.
        compile_: Whether to compile the networks' blocks, and how; None not to.
        how: The kind of distillation.
    """

    def __init__(
        self,
        network: Denoiser,
        teacher: Denoiser,
        sizes: Sizes,
        work: Path,
        pool: Pool,
        clips: int,
        rate: float,
        seed: int,
        muon: bool,
        compile_: str | None,
        how: Distilling,
    ) -> None:
        super().__init__(network, rate, decay=0.998, seed=seed, muon=muon)
        self.teacher = teacher.requires_grad_(False).eval()
        self.sizes = sizes
        self.work = work
        self.pool = pool
        self.clips = clips
        self.how = how
        device = pool.latents.device
        self.turn = Turn(sizes.transformer, sizes.latent[1:], sizes.latent_frames, device)
        self.chunk = chunk_tokens(sizes)
        self.attention = teacher_forcing(sizes, device)
        if compile_ is not None:
            for each in (self.network, self.average, self.teacher):
                if isinstance(each, Denoiser):
                    each.compile_blocks(compile_)

    def hand_on(self) -> None:
        """Write `student.safetensors`."""
        save_denoiser(self.average, self.work, "student")

    def context(self, network: nn.Module, clean: Tensor, ids: Tensor) -> LayeredCache:
        """What noisy chunks attend to: their clip's clean chunks as a frozen network sees them."""
        if clean.shape[1] == self.sizes.chunk_frames:
            return FirstChunk(self.turn)
        seen = CleanPass(self.turn, self.chunk)
        network(clean, torch.zeros_like(clean[:, :, 0, 0, 0]), ids, seen)
        return NoisyPass(self.turn, self.chunk, seen.kept())

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Robust error of the student's clean estimate."""
        generator, how, step = self.generator(), self.how, self.trainer.global_step
        # A first chunk has no context and so most to decide; some steps learn nothing else.
        first = how.first_every > 0 and step % how.first_every == how.first_every - 1
        clean, ids = self.pool.draw(self.clips * (how.first_factor if first else 1), generator)
        if first:
            clean = clean[:, : self.sizes.chunk_frames]
        chunks = clean.shape[1] // self.sizes.chunk_frames
        which = torch.randint(len(STEPS), (clean.shape[0], chunks), generator=generator, device=clean.device)
        which = which.repeat_interleave(self.sizes.chunk_frames, dim=1)
        levels = torch.tensor(STEPS, device=clean.device)[which]
        # Drawn on the CPU, from the step alone: a branch on a device value would stall, and ranks agree.
        drawn = float(torch.rand((), generator=torch.Generator().manual_seed(self.seed * 7919 + step)))
        with torch.no_grad():
            if drawn < how.own:
                noisy = self.sampled(clean, which, ids, generator)
            else:
                noise = torch.randn(clean.shape, generator=generator, device=clean.device)
                noisy = noised(clean, noise, levels)
            target = self.endpoint(clean, noisy, levels, ids)
        flow = self.flow(clean, noisy, levels, ids)
        estimate = noisy - levels[:, :, None, None, None] * flow
        # Near its minimum like a square, further out like an absolute value: what the student cannot
        # resolve becomes a median, which is sharper than a mean.
        loss: Tensor = ((estimate - target).square() + 0.1**2).sqrt().sub(0.1).mean()
        return loss

    def flow(self, clean: Tensor, noisy: Tensor, levels: Tensor, ids: Tensor) -> Tensor:
        """The student's flow of noisy chunks; in whole clips the clean half learns too."""
        if clean.shape[1] == self.sizes.chunk_frames:
            alone: Tensor = self.network(noisy, levels, ids, FirstChunk(self.turn))
            return alone
        both = torch.cat([clean, noisy], dim=1)
        levels = torch.cat([torch.zeros_like(levels), levels], dim=1)
        flow: Tensor = self.network(both, levels, ids, self.attention)[:, clean.shape[1] :]
        return flow

    def sampled(self, clean: Tensor, which: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """What the student's sampler holds before step `which` `[B, F]`, every chunk in its clean context.

        The average samples: it is what will be used, and being frozen it shares the teacher's compiled code.
        """
        context = self.context(self.average, clean, ids)
        latents = torch.randn(clean.shape, generator=generator, device=clean.device)
        kept = latents
        for index in range(1, len(STEPS)):
            levels = torch.full(which.shape, STEPS[index - 1], device=clean.device)
            flow = self.average(latents, levels, ids, context)
            noise = torch.randn(clean.shape, generator=generator, device=clean.device)
            latents = torch.lerp(latents - STEPS[index - 1] * flow, noise, STEPS[index])
            kept = torch.where((which >= index)[:, :, None, None, None], latents, kept)
        return kept

    def endpoint(self, clean: Tensor, noisy: Tensor, levels: Tensor, ids: Tensor) -> Tensor:
        """Where the teacher's ODE ends from noisy latents, in steps even in times shifted by 3.

        Second order at one evaluation a step: the flow is extrapolated to mid-step (Adams-Bashforth).
        """
        steps = self.how.ode_steps
        prompts = [ids] if self.how.guidance == 1 else [ids, torch.full_like(ids, PAD)]
        contexts = [self.context(self.teacher, clean, prompt) for prompt in prompts]
        start = levels / (3 - 2 * levels)  # the time whose level, shifted by 3, is the chunk's
        latents, before, length_before = noisy, None, None
        for index in range(steps):
            level = shifted(start * (1 - index / steps), 3.0)
            length = shifted(start * (1 - (index + 1) / steps), 3.0) - level
            flows = [
                self.teacher(latents, level, prompt, context)
                for prompt, context in zip(prompts, contexts, strict=True)
            ]
            flow = torch.lerp(flows[-1], flows[0], self.how.guidance)
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
    muon: bool,
    compile_: bool,
    how: Distilling,
) -> None:
    """Run the stage; leaves `student.safetensors` and a record in `work`."""
    torch.manual_seed(seed)
    device = own_device()
    teacher = Denoiser.load(sizes.transformer, work, "teacher").to(device)
    student = Denoiser.load(sizes.transformer, work, "teacher").to(device)
    pool = Pool.load(work, device)
    say(f"student: {len(pool.latents)} clips")
    backend = "inductor" if compile_ else None
    stage = DistillStage(student, teacher, sizes, work, pool, clips, rate, seed, muon, backend, how)
    pace = fit(stage, budget, work / "student.ckpt", resume)
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
        **attrs.asdict(how),
        "loss": pace.loss,
    }
    record(work / "distill.record.json", facts)
