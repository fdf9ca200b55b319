"""Measures the drift of recipes: rolls all out for the same prompts and seeds, and compares their windows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.cost import PolicyCost, check_chunks, measure_costs
from tetherflow.evaluate.drift_report import DriftReport, PolicyDrift
from tetherflow.evaluate.figures import HorizonFigures, Judged, drift_figures, drift_ratios
from tetherflow.evaluate.frechet import Moments
from tetherflow.evaluate.measure import measure
from tetherflow.evaluate.reference import Reference
from tetherflow.evaluate.shelf import Shelf
from tetherflow.evaluate.windows import WindowPlan, WindowStatistics
from tetherflow.plugins import load_backbone
from tetherflow.recipe import Recipe, latent_frames_of
from tetherflow.rollout.batches import items_of
from tetherflow.rollout.devices import device_name, dtype_of
from tetherflow.rollout.open_session import Backbones, first_device, threads_for
from tetherflow.rollout.progress import RolloutProgress
from tetherflow.rollout.writers import require_writable

REFERENCE_CLIPS: Final = 16
"""Held-out real clips of each prompt that quality is judged against, unless another number is asked for."""


def with_prompts(
    recipe: Recipe, prompts: Sequence[str], *, seconds: float, seed: int = 0, batch_size: int = 1
) -> Recipe:
    """The recipe, to be measured: other prompts, one sample each, of another length.

    Args:
        recipe: a validated recipe.
        prompts: what the videos show.
        seconds: length of the videos: the last horizon.
        seed: of all noise.
        batch_size: videos generated together.
    """
    rollout = {
        "prompts": list(prompts),
        "seconds": float(seconds),
        "latent_frames": None,
        "samples": 1,
        "seed": seed,
        "first_frames": None,
    }
    return recipe.model_copy(
        update={
            "rollout": recipe.rollout.model_copy(update=rollout),
            "runtime": recipe.runtime.model_copy(update={"batch_size": batch_size}),
        }
    )


def plan_windows(recipe: Recipe, horizons: Sequence[float]) -> WindowPlan:
    """The windows of a recipe made by `with_prompts`.

    Raises:
        EvaluationError: A horizon is given twice, is shorter than a window, or is past the video's end.
    """
    if any(not math.isfinite(horizon) for horizon in horizons) or len(set(horizons)) < len(horizons):
        given = ", ".join(f"{horizon:g}" for horizon in horizons)
        raise EvaluationError(f"horizons are different lengths of time in seconds; these are given: {given}")
    frames = 1 + 4 * (latent_frames_of(recipe) - 1)
    return WindowPlan.of(frames, horizons, fps=load_backbone(recipe.backbone.use).fps)


def check_comparable(recipes: Sequence[Recipe]) -> None:
    """Make sure that recipes can be measured against each other.

    Args:
        recipes: made by `with_prompts`.

    Raises:
        EvaluationError: None is given, one is given twice, they differ in their backbone or in their videos,
            a prompt is given twice, or there is but one.
    """
    if not recipes:
        raise EvaluationError("there is no recipe to measure")
    names = Counter(recipe.output.name for recipe in recipes)
    for name, count in names.items():
        if count > 1:
            raise EvaluationError(
                f"recipe '{name}' is named {count} times; give each once, and each a name of its own "
                f"(output.name) if they differ"
            )
    first = recipes[0]
    prompts = Counter(item.prompt for item in items_of(first))
    prompt, count = prompts.most_common(1)[0]
    if count > 1:
        raise EvaluationError(
            f"the prompt '{prompt[:80]}' is given {count} times; it would make the same video each time"
        )
    if len(prompts) < 2:
        raise EvaluationError("an interval needs at least two videos: measure more prompts")
    for other in recipes[1:]:
        if other.backbone != first.backbone:
            raise EvaluationError(
                f"recipes '{first.output.name}' and '{other.output.name}' differ in their backbone, "
                f"{first.backbone.model_dump()} and {other.backbone.model_dump()}: their drift would too"
            )
        if items_of(other) != items_of(first) or latent_frames_of(other) != latent_frames_of(first):
            raise EvaluationError("recipes are compared over the same prompts, seeds and length")


def measure_drift(
    recipes: Sequence[Recipe],
    horizons: Sequence[float],
    folder: Path,
    *,
    reference_clips: int = REFERENCE_CLIPS,
    time_chunks: int = 0,
    backbones: Backbones | None = None,
    progress: Callable[[], RolloutProgress] = lambda: RolloutProgress(enabled=False),
) -> DriftReport:
    """Roll out every recipe and compute its figures.

    Each batch's statistics are kept in `folder`, so a measurement that was interrupted goes on where it
    stopped. Everything that can be wrong with what is given is found out before any video is generated.

    Args:
        recipes: made by `with_prompts`, all with the same prompts; the first is the baseline.
        horizons: where the last windows end, in seconds.
        folder: where statistics are kept; it is made if it is not there.
        reference_clips: held-out real clips of each prompt that quality is judged against; at least two.
            Figures against fewer than the default number are for trying things out.
        time_chunks: chunks to time each recipe over, beside the first, after the rollouts; none with 0.
        backbones: those that are loaded already.
        progress: makes the display of one recipe's progress.

    Raises:
        EvaluationError: The recipes cannot be compared, or a horizon does not fit.
        TetherflowError: The backbone ships no real clips of the prompts, or a recipe cannot be run.
        OutputError: The folder cannot be written.
        KeyboardInterrupt: A signal stopped it; what was measured is kept.
    """
    check_comparable(recipes)
    check_chunks(time_chunks)
    plan = plan_windows(recipes[0], horizons)
    devices = [first_device(recipe) for recipe in recipes]
    require_writable(folder)
    backbones = backbones or Backbones()
    loaded = [backbones.of(recipe, device) for recipe, device in zip(recipes, devices, strict=True)]
    with threads_for(recipes[0]):
        items = items_of(recipes[0])
        prompts = [item.prompt for item in items]
        reference = Reference.of(loaded[0], prompts, reference_clips, plan.spans[0][1])
        statistics = []
        for index, (recipe, device, backbone) in enumerate(zip(recipes, devices, loaded, strict=True)):
            shelf = Shelf.of(folder, recipe, plan, backbone, device)
            label = f"{recipe.output.name} ({index + 1}/{len(recipes)})"
            statistics.append(measure(recipe, plan, shelf, backbone, progress(), label))
        costs: Sequence[PolicyCost | None] = [None] * len(recipes)
        if time_chunks:
            costs = measure_costs(recipes, time_chunks, backbones, progress())
        return DriftReport(
            policies=_policies(recipes, statistics, reference.prompts, costs),
            real=reference.against_itself(),
            prompts=prompts,
            seeds=[item.seed for item in items],
            seed=recipes[0].rollout.seed,
            window_frames=plan.spans[0][1],
            reference_clips=reference_clips,
            backbone=recipes[0].backbone.use,
            weights_sha256=loaded[0].weights_digest(),
            device=device_name(devices[0]),
        )


def _policies(
    recipes: Sequence[Recipe],
    statistics: Sequence[WindowStatistics],
    reference: Moments,
    costs: Sequence[PolicyCost | None],
) -> list[PolicyDrift]:
    """The figures of all recipes, from the statistics of their videos."""
    judged = [Judged(own, reference) for own in statistics]
    figures = [drift_figures(own) for own in judged]
    shares = [None, *(_shares(own, judged[0], figures[0]) for own in judged[1:])]
    return [
        PolicyDrift(
            name=recipe.output.name or "",
            figures=own,
            share=share,
            cost=cost,
            dtype=str(dtype_of(recipe, first_device(recipe))).removeprefix("torch."),
            recipe=recipe.model_dump(
                mode="json", exclude={"output": True, "rollout": {"prompts"}}, exclude_none=True
            ),
        )
        for recipe, own, share, cost in zip(recipes, figures, shares, costs, strict=True)
    ]


def _shares(own: Judged, baseline: Judged, drifts: list[HorizonFigures]) -> list[Estimate | None]:
    """A policy's drift as a share of the baseline's, where that one is known to drift."""
    known = [figures.drift.low > 0 for figures in drifts]
    if not any(known):
        return [None] * len(known)
    ratios = drift_ratios(own, baseline)
    return [ratio if drifting else None for ratio, drifting in zip(ratios, known, strict=True)]
