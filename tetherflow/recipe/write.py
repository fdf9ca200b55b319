"""A recipe back as YAML, every default spelt out."""

from __future__ import annotations

import yaml

from tetherflow.recipe.model import Recipe


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML that stands alone: it extends nothing, and reading it gives the same recipe."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
