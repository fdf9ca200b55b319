"""Recipes: complete pipelines as YAML files, read strictly and checked before anything runs."""

from tetherflow.recipe.bundled import bundled_recipes
from tetherflow.recipe.model import Recipe
from tetherflow.recipe.parts import (
    advice_on,
    backbone_of,
    chunk_frames_of,
    latent_frames_of,
    layout_of,
    pipeline_of,
    unit_of,
)
from tetherflow.recipe.prompts import read_prompts
from tetherflow.recipe.read import load_recipe
from tetherflow.recipe.schema import json_schema
from tetherflow.recipe.write import dump_recipe

__all__ = [
    "Recipe",
    "advice_on",
    "backbone_of",
    "bundled_recipes",
    "chunk_frames_of",
    "dump_recipe",
    "json_schema",
    "latent_frames_of",
    "layout_of",
    "load_recipe",
    "pipeline_of",
    "read_prompts",
    "unit_of",
]
