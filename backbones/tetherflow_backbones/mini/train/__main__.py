"""The command `python -m tetherflow_backbones.mini.train STAGE`."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from tetherflow_backbones.mini.config import MINI, TINY
from tetherflow_backbones.mini.train.course import Course, run_all
from tetherflow_backbones.mini.train.devices import is_launched, launch
from tetherflow_backbones.mini.train.distill import Distilling, train_student
from tetherflow_backbones.mini.train.export import export
from tetherflow_backbones.mini.train.pool import encode_pool
from tetherflow_backbones.mini.train.preview import preview
from tetherflow_backbones.mini.train.run import Budget
from tetherflow_backbones.mini.train.teacher import train_teacher
from tetherflow_backbones.mini.train.vae import train_vae
from tetherflow_backbones.mini.weights import PACKAGED

EPILOG = """examples:
  everything, on one GPU, or on four of one host, within 24 minutes:
    python -m tetherflow_backbones.mini.train all --work runs/mini --minutes 24 --devices 4
  stage by stage:
    python -m tetherflow_backbones.mini.train vae --work runs/mini --minutes 7
    python -m tetherflow_backbones.mini.train latents --work runs/mini
    python -m tetherflow_backbones.mini.train teacher --work runs/mini --minutes 11
    python -m tetherflow_backbones.mini.train distill --work runs/mini --minutes 5
    python -m tetherflow_backbones.mini.train export --work runs/mini
"""


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    root = argparse.ArgumentParser(
        prog="python -m tetherflow_backbones.mini.train",
        description="Train the miniature, stage by stage.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = root.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def stage(name: str, text: str) -> argparse.ArgumentParser:
        made = stages.add_parser(name, help=text, description=text)
        made.add_argument("--work", type=Path, required=True, help="folder that holds every stage's results")
        made.add_argument("--tiny", action="store_true", help="a far smaller model, to try the pipeline out")
        made.add_argument("--seed", type=int, default=0)
        return made

    def spread(made: argparse.ArgumentParser) -> None:
        made.add_argument("--devices", type=int, default=1, help="devices of this host to spread over")

    def trained(name: str, text: str, steps: int, clips: int, rate: float) -> argparse.ArgumentParser:
        made = stage(name, text)
        made.add_argument("--steps", type=int, default=steps, help="optimiser steps at most")
        made.add_argument("--minutes", type=float, help="wall-clock minutes at most")
        made.add_argument("--clips", type=int, default=clips, help="clips a step, on each device")
        made.add_argument("--rate", type=float, default=rate, help="peak rate; AdamW beside Muon takes less")
        made.add_argument("--adamw", dest="muon", action="store_false", help="AdamW for all, no Muon")
        made.add_argument("--warmup", type=int, default=200, help="steps over which the rate rises")
        made.add_argument("--checkpoint-every", type=int, default=1000, help="steps between checkpoints")
        made.add_argument("--report-every", type=int, default=50, help="steps between lines of the report")
        made.add_argument("--resume", action="store_true", help="go on from the stage's checkpoint")
        spread(made)
        return made

    def compiling(made: argparse.ArgumentParser) -> None:
        made.add_argument("--no-compile", dest="compile", action="store_false", help="never compile")
        made.add_argument("--compile", dest="compile", action="store_true", help="compile (default on a GPU)")
        made.set_defaults(compile=torch.cuda.is_available())

    vae = trained("vae", "train the autoencoder", steps=20000, clips=24, rate=6e-3)
    vae.add_argument("--start", type=Path, help="folder with an autoencoder to start from")
    vae.add_argument("--decoder-only", action="store_true", help="keep the encoder of --start")
    vae.add_argument("--long-every", type=int, default=4, help="steps from one with longer clips to the next")
    vae.add_argument("--channels-last", action="store_true", help="weights in the other memory layout")
    latents = stage("latents", "encode a pool of clips")
    latents.add_argument("--clips", type=int, default=24576)
    latents.add_argument("--batch", type=int, default=32, help="clips encoded at once")
    latents.add_argument("--minutes", type=float, help="stop with what is there after so long")
    spread(latents)
    teacher = trained("teacher", "train the many-step model", steps=40000, clips=48, rate=2e-3)
    teacher.add_argument("--context-noise", type=float, default=0.0, help="most noise in clean chunks")
    distill = trained("distill", "train the few-step model", steps=20000, clips=48, rate=6e-4)
    how = Distilling()
    distill.add_argument("--ode-steps", type=int, default=how.ode_steps, help="of the teacher's integration")
    distill.add_argument("--guidance", type=float, default=how.guidance, help="of the teacher; 1 is none")
    distill.add_argument("--own", type=float, default=how.own, help="part of steps on own samples")
    distill.add_argument("--first-every", type=int, default=how.first_every, help="0: no first-chunk steps")
    distill.add_argument(
        "--first-factor", type=int, default=how.first_factor, help="times more clips in them"
    )
    whole = stage("all", "run every stage within a time, and export")
    whole.add_argument("--minutes", type=float, required=True, help="wall-clock minutes for everything")
    whole.add_argument("--out", type=Path, help="folder for the exported files (WORK/weights)")
    whole.add_argument("--resume", action="store_true", help="go on where a run in this folder was cut off")
    whole.add_argument("--note", default="Not judged.", help="what the card says of the quality")
    whole.add_argument("--set", nargs=2, action="append", default=[], metavar=("STAGE", "OPTIONS"))
    spread(whole)
    for made in (vae, latents, teacher, distill, whole):
        compiling(made)
    for name, text in (("export", "write the files that ship"), ("preview", "draw contact sheets")):
        made = stage(name, text)
        made.add_argument("--model", choices=("student", "teacher"), default="student")
        if name == "export":
            made.add_argument("--note", default="Not judged.", help="what the card says of the quality")
        made.add_argument("--out", type=Path, default=PACKAGED if name == "export" else None)
    made.add_argument("--count", type=int, default=8, help="prompts")
    made.add_argument("--chunks", type=int, default=40, help="chunks of the long rollout")
    made.add_argument("--ode-steps", type=int, help="Euler steps (16 for a teacher, else few-step)")
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one stage, or all.

    Args:
        arguments: The command's; those of this process if None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    if options.stage == "all":
        run_all(Course.of(options), main)
    elif getattr(options, "devices", 1) > 1 and not is_launched():
        launch(options.devices, given)
    else:
        run_stage(options)


def run_stage(options: argparse.Namespace) -> None:
    """Run one stage in this process."""
    # Advice about loader workers and loggers: this data is made on the device, the log is printed.
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    sizes = TINY if options.tiny else MINI
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if options.stage == "latents":
        encode_pool(sizes, work, options.clips, options.seed, options.minutes, options.batch, options.compile)
    elif options.stage == "export":
        export(sizes, work, options.model, options.out, options.note)
    elif options.stage == "preview":
        ode = options.ode_steps or (16 if options.model == "teacher" else None)
        preview(sizes, work, options.model, options.out or work, options.count, options.chunks, ode)
    else:
        budget = Budget(
            options.steps, options.minutes, options.warmup, options.checkpoint_every, options.report_every
        )
        seed, clips, rate = options.seed, options.clips, options.rate
        common = (sizes, work, budget, seed, clips, rate, options.resume, options.muon, options.compile)
        if options.stage == "vae":
            if options.decoder_only and options.start is None:
                raise SystemExit("--decoder-only needs --start, a folder with a trained autoencoder")
            start = (options.start, options.decoder_only)
            train_vae(*common, *start, options.long_every, options.channels_last)
        elif options.stage == "teacher":
            train_teacher(*common, options.context_noise)
        else:
            firsts = (options.first_every, options.first_factor)
            train_student(*common, Distilling(options.ode_steps, options.guidance, options.own, *firsts))


if __name__ == "__main__":
    main()
