"""Build hook of the policies' pages: options, the pictures' provenance, and the table of what each needs."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from hooks import options_of
from policy_pictures import command_of

from tetherflow.backbone import Backbone
from tetherflow.cache import SideShape
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import Recipe, backbone_of, bundled_recipes, load_recipe, pipeline_of, unit_of
from tetherflow.rollout.open_session import open_session

TABLE: Final = "<!-- generated: what each policy needs -->"
OPTIONS: Final = re.compile(r"<!-- generated: options of ([a-z0-9, -]+) -->")
PICTURE: Final = re.compile(r"^!\[[^\]]*\]\(\.\./images/policies/([a-z0-9-]+)\.png\)$", re.MULTILINE)
PAGES: Final = Path(__file__).parent / "policies"
HOOKS: Final = ("evict", "score", "select", "edit", "merge", "place", "view", "revise", "switch")
MOMENTS: Final = {
    "begin": "as the chunk begins",
    "first-pass": "in its first pass",
    "commit": "in its context pass",
}
HEADINGS: Final = (
    "recipe",
    "unit",
    "regions, in frames",
    "positions",
    "hooks",
    "memory is decided",
    "may read",
    "notes of a unit",
    "beside the cache",
    "memory",
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace what is generated of a page."""
    markdown = OPTIONS.sub(lambda found: options_of(*found[1].split(", ")), markdown)
    markdown = PICTURE.sub(lambda found: f"{found[0]}\n\n{provenance(found[1])}", markdown)
    return markdown.replace(TABLE, needs()) if TABLE in markdown else markdown


def provenance(recipe: str) -> str:
    """How a picture was made."""
    loaded = _recipe(recipe)
    layers = _backbone().cache_shape.layers
    where = f"backbone `{loaded.backbone.use}`, layer {layers // 2} of 0 to {layers - 1}"
    return f"*`{command_of(recipe)}`: {where}, seed {loaded.rollout.seed}.*"


def policies() -> list[str]:
    """The shipped recipes that are policies of their own: neither another's for a model or a video."""
    found = []
    for name, path in bundled_recipes().items():
        own = yaml.safe_load(path.read_text()).keys() & {"cache", "stages"}
        if own and _recipe(name).backbone.use == "mini":
            found.append(name)
    return found


def page_of(recipe: str) -> Path | None:
    """The page that shows a recipe, if one does."""
    shown = (page for page in sorted(PAGES.glob("*.md")) if f'"{recipe}.yaml"' in page.read_text())
    return next(shown, None)


@cache
def needs() -> str:
    """The table of what each policy needs."""
    rows = [HEADINGS, ["---"] * len(HEADINGS), *(_row(name) for name in policies())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str) -> list[str]:
    recipe = _recipe(name)
    pipeline, page = pipeline_of(recipe), page_of(name)
    uses = pipeline.uses
    moment = MOMENTS[uses.recall] if uses.recall else "–"
    if uses.decides_at is not None:
        moment += f", by layer {uses.decides_at} for all later ones"
    return [
        f"[`{name}`]({page.name})" if page else f"`{name}`",
        f"{unit} rows of tokens" if isinstance(unit := unit_of(recipe), int) else unit,
        ", ".join(f"{region} {size}" for region, size in _regions(recipe).items() if size),
        "the policy's" if uses.place else recipe.cache.positions,
        ", ".join(f"`{hook}`" for hook in _hooks(pipeline)),
        moment,
        ", ".join(_reads(pipeline)) or "–",
        ", ".join(f"`{noted}`" for noted in uses.metadata) or "–",
        _beside(recipe, pipeline),
        f"{_frames(recipe):.1f} frames",
    ]


def _regions(recipe: Recipe) -> dict[str, int]:
    regions = recipe.cache.regions
    return {name: getattr(regions, name) for name in ("sink", "bank", "memory", "recent")}


def _hooks(pipeline: Pipeline) -> list[str]:
    found = {
        caller.name for stage in pipeline.stages for caller in pipeline.manager.get_hookcallers(stage) or ()
    }
    return [hook for hook in HOOKS if hook in found]


def _reads(pipeline: Pipeline) -> list[str]:
    """What is read of units and passes, which the engine then provides."""
    uses = pipeline.uses
    queries = any(scorer.needs_query for scorer in pipeline.scorers)
    there = {"queries": queries, "unrotated keys": uses.raw, "statistics": uses.statistics}
    return [name for name, used in there.items() if used]


def _beside(recipe: Recipe, pipeline: Pipeline) -> str:
    """Side stores, by name."""
    shape = _backbone().cache_shape
    parts = shape.parts(unit_of(recipe))
    unit = (shape.tokens // parts, shape.heads, shape.head_dim)
    stores = pipeline.side_stores(SideShape(unit, parts, recipe.cache.budget * parts))
    return ", ".join(f"`{name}`" for stage in stores.values() for name in stage) or "–"


def _frames(recipe: Recipe) -> float:
    """Bytes of a whole cache, in latent frames' keys and values."""
    shape = _backbone().cache_shape
    frame = 2 * shape.layers * shape.tokens * shape.heads * shape.head_dim * torch.float32.itemsize
    return open_session(recipe, torch.device("cpu"), _backbone()).new_cache(1).nbytes / frame


@cache
def _recipe(name: str) -> Recipe:
    """A shipped recipe, read once."""
    return load_recipe(name)


@cache
def _backbone() -> Backbone:
    """The miniature, loaded once."""
    return backbone_of(_recipe("fifo"), torch.device("cpu"), torch.float32)
