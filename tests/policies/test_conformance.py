"""Our own policies under the conformance suite that third parties use: every policy listed once."""

from __future__ import annotations

from tetherflow.plugins import POLICIES, installed, provider
from tetherflow.recipe import load_recipe, pipeline_of
from tetherflow.testing import conformance

MATRIX = [
    "fifo",
    "sink-window",
    "tethercache",
    "grab-no-diversity",
    "tethercache-no-tame",
    "infinity-rope",
    "rolling-forcing",
    "longlive",
]
"""Recipes: each tests its stages with its options, at its key positions or others, in small regions."""

test_policies_conform = conformance({name: name for name in MATRIX})


def test_every_stage_is_in_the_matrix() -> None:
    """A policy gets its tests by being listed; this says which one is not."""
    tested = {stage.name for name in MATRIX for stage in pipeline_of(load_recipe(name)).stages}
    ours = {name for name in installed(POLICIES) if provider(POLICIES, name)[0] == "tetherflow"}
    assert ours - tested == set()
