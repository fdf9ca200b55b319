"""What a recipe describes, as objects: layout, policy and backbone; and whether they fit together."""

from __future__ import annotations

from os.path import isfile  # which takes a name that cannot be for one that is not there
from typing import TypeVar

import torch

from tetherflow.backbone import Backbone, BackboneOptions, CacheUse
from tetherflow.cache.interfaces import Unit
from tetherflow.cache.layout import Layout
from tetherflow.errors import LayoutError, PipelineError
from tetherflow.pipeline import Pipeline
from tetherflow.plugins import load_backbone, load_stage
from tetherflow.recipe.model import PluginEntry, Recipe
from tetherflow.recipe.problems import Problem
from tetherflow.recipe.scheduled import build
from tetherflow.schedules import Schedule
from tetherflow.stages import Editor, Evictor, Merger, Scorer, Selector, Stage, StageName

Kind = TypeVar("Kind", bound=Stage)

LATENT_STRIDE = 4
"""Video frames a latent frame stands for, in time (the first one stands for one)."""


def layout_of(recipe: Recipe) -> Layout:
    """The cache's regions."""
    regions = recipe.cache.regions
    return Layout(regions.sink, regions.memory, regions.recent or 0, regions.bank)


def unit_of(recipe: Recipe) -> Unit:
    """What the cache keeps or drops as a whole."""
    unit = recipe.cache.unit
    return unit if isinstance(unit, str) else unit.rows


def pipeline_of(recipe: Recipe) -> Pipeline:
    """The cache policy, newly built.

    Raises:
        PluginError: A plugin has gone since the recipe was read.
        PipelineError: The stages do not make up a policy.
    """
    stages = recipe.stages
    schedules: dict[str, dict[str, Schedule]] = {}

    def stage(entry: PluginEntry, name: StageName, kind: type[Kind]) -> Kind:
        cls = load_stage(entry.use, name)
        if not issubclass(cls, kind):
            raise PipelineError(f"plugin '{entry.use}' is no {kind.__name__} and cannot serve as '{name}'")
        options, schedules[entry.use] = build(entry, cls)
        return cls(options, name=entry.use)

    return Pipeline(
        evict=stage(stages.evict, "evict", Evictor),
        score=[stage(entry, "score", Scorer) for entry in stages.score],
        select=stage(stages.select, "select", Selector) if stages.select else None,
        edit=[stage(entry, "edit", Editor) for entry in stages.edit],
        merge=stage(stages.merge, "merge", Merger) if stages.merge else None,
        schedules=schedules,
        frame_seconds=LATENT_STRIDE / load_backbone(recipe.backbone.use).fps,
    )


def backbone_of(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The video model, with its weights loaded.

    Args:
        recipe: the recipe.
        device: where it runs.
        dtype: type of the transformer's weights.

    Raises:
        WeightsError: Weights are missing, truncated or of another architecture.
    """
    cls = load_backbone(recipe.backbone.use)
    options: BackboneOptions = cls.Options.model_validate_json(recipe.backbone.options_json(), strict=True)
    return cls(options, device=device, dtype=dtype, parity=recipe.runtime.numerics == "parity")


def chunk_frames_of(recipe: Recipe) -> int:
    """Latent frames denoised together: the rollout's, the backbone's option of that name, or its default."""
    chosen = recipe.rollout.chunk_frames or recipe.backbone.options.get("chunk_frames")
    return int(chosen or load_backbone(recipe.backbone.use).sampler.chunk_frames)


def latent_frames_of(recipe: Recipe) -> int:
    """Length of each video in latent frames: seconds x frames a second / 4, rounded, and at least one."""
    rollout = recipe.rollout
    if rollout.latent_frames is not None:
        return rollout.latent_frames
    fps = load_backbone(recipe.backbone.use).fps
    return max(1, round((rollout.seconds or 0.0) * fps / LATENT_STRIDE))


def check_parts(recipe: Recipe) -> list[Problem]:
    """Find what does not fit together, though each part is right by itself."""
    problems = []
    try:
        pipeline = pipeline_of(recipe)
    except PipelineError as error:
        return [Problem(("stages",), str(error))]
    if pipeline.selector is not None and pipeline.selector.needs_score and not pipeline.scorers:
        message = "'select' needs at least one 'score' plugin to select by, and there is none"
        problems.append(Problem(("stages",), message))
    try:
        layout = layout_of(recipe)
        layout.check_chunk(chunk_frames_of(recipe))
        pipeline.check_layout(layout)
    except LayoutError as error:
        problems.append(Problem(("cache", "regions"), str(error)))
    whole = pipeline.uses.whole_frames
    if whole is not None and recipe.cache.unit != "frame":
        problems.append(Problem(("cache", "unit"), f"'{whole}' keeps whole frames; set it to frame"))
    first = recipe.rollout.first_frames
    if first is not None and not isfile(first):
        problems.append(Problem(("rollout", "first_frames"), f"there is no file {first}"))
    return problems


def advice_on(recipe: Recipe) -> list[str]:
    """What its backbone has to say against the recipe's cache and policy: warnings, not errors."""
    stages = recipe.stages
    entries = [stages.evict, *stages.score, stages.select, *stages.edit, stages.merge]
    use = CacheUse(
        policies=tuple(entry.use for entry in entries if entry is not None),
        layout=layout_of(recipe),
        positions=recipe.cache.positions,
        chunk_frames=chunk_frames_of(recipe),
    )
    return load_backbone(recipe.backbone.use).advice(use)
