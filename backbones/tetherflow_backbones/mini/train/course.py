"""Every stage in one go, within a time: `python -m tetherflow_backbones.mini.train all`."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from tetherflow_backbones.mini.train.run import say
from tetherflow_backbones.mini.weights import read_json

SHARES = {"vae": 0.30, "latents": 0.05, "teacher": 0.45, "distill": 0.20}
"""Of the minutes that training has."""

START = 0.35
"""Minutes that a stage takes before its clock runs and after it stops: imports, the device, files."""

ENDING = 0.8
"""Minutes kept for the export and the contact sheets."""


@attrs.frozen
class Course:
    """A run of all stages.

    Attributes:
        work: Folder that holds every stage's results.
        minutes: Wall-clock minutes for everything.
        devices: Devices of this host to spread over.
        out: Folder for the exported files.
        note: What their card says of the quality.
        common: Options that every stage takes.
        training: Options that every stage but export and preview takes.
        extra: Further options of single stages.
        resume: Whether to keep what a run that was cut off has finished, and its times.
    """

    work: Path
    minutes: float
    devices: int
    out: Path
    note: str
    common: tuple[str, ...]
    training: tuple[str, ...]
    extra: dict[str, tuple[str, ...]]
    resume: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> Course:
        """The course that a command line asks for."""
        work: Path = options.work
        common = ("--work", str(work), "--seed", str(options.seed), *(("--tiny",) if options.tiny else ()))
        compiling = "--compile" if options.compile else "--no-compile"
        extra: dict[str, tuple[str, ...]] = {}
        for stage, text in options.set:
            if stage not in (*SHARES, "preview"):
                raise SystemExit(f"--set {stage}: no such stage; there are {', '.join(SHARES)}, preview")
            extra[stage] = (*extra.get(stage, ()), *shlex.split(text))
        return cls(
            work=work,
            minutes=options.minutes,
            devices=options.devices,
            out=options.out or work / "weights",
            note=options.note,
            common=common,
            training=("--devices", str(options.devices), compiling),
            extra=extra,
            resume=options.resume,
        )

    def plan(self) -> dict[str, float]:
        """Minutes of each stage's own clock."""
        left = self.minutes - START * len(SHARES) - ENDING
        if left <= 0:
            # Too short for more than a trial: a tenth of it each, whatever starting takes.
            return dict.fromkeys(SHARES, self.minutes / 10)
        return {stage: share * left for stage, share in SHARES.items()}

    def arguments(self, stage: str, minutes: float) -> list[str]:
        """A training stage's command line."""
        made = [stage, *self.common, *self.training, "--minutes", f"{minutes:.3f}"]
        if stage in ("vae", "latents"):
            made.append("--no-compile")  # it is over before compiling would have paid
        if stage != "latents" and self.resume:
            made.append("--resume")
        return [*made, *self.extra.get(stage, ())]


def run_all(course: Course, run: Callable[[Sequence[str]], None]) -> None:
    """Run the stages, exporting as soon as there is a model.

    The teacher is exported when it is ready and the student over it, so that a run that is cut off leaves
    what it has; a stage that trains also writes its average with each checkpoint.

    Args:
        course: What to run.
        run: Runs one stage, from its command line.
    """
    begun = time.monotonic()
    course.work.mkdir(parents=True, exist_ok=True)
    file = course.work / "course.json"
    if course.resume and file.exists():
        known = read_json(file)
        plan, done = dict(known["plan"]), list(known["done"])
    else:
        plan, done = course.plan(), []
    say("minutes: " + ", ".join(f"{stage} {minutes:.1f}" for stage, minutes in plan.items()))

    def once(step: str, arguments: Sequence[str]) -> None:
        if step in done:
            return
        say(f"[{(time.monotonic() - begun) / 60:5.1f} min] {step}")
        run(arguments)
        done.append(step)
        file.write_text(json.dumps({"plan": plan, "done": done}, indent=2) + "\n")

    def shown(model: str) -> None:
        shipped = ("--model", model, "--out", str(course.out), "--note", course.note)
        once(f"export {model}", ["export", *course.common, *shipped])
        sheets = ("--model", model, *course.extra.get("preview", ()))
        once(f"preview {model}", ["preview", *course.common, *sheets])

    for stage in ("vae", "latents", "teacher"):
        once(stage, course.arguments(stage, plan[stage]))
    shown("teacher")
    once("distill", course.arguments("distill", plan["distill"]))
    shown("student")
    say(f"[{(time.monotonic() - begun) / 60:5.1f} min] done: {course.out}")
