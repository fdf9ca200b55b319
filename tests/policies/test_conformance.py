"""Our own policies under the conformance suite that third parties use: every policy listed once."""

from __future__ import annotations

import pytest

from tetherflow.pipeline import Pipeline
from tetherflow.plugins import POLICIES, installed, provider
from tetherflow.recipe import load_recipe, pipeline_of
from tetherflow.testing import RULES, Subject, conformance
from tetherflow.testing.device import stays_on_the_device
from tetherflow.testing.trial import Rule
from tetherflow_policies.deep_forcing import CappedTopM, DeepForcing, Participation
from tetherflow_policies.forcing_kv import ForcingKV
from tetherflow_policies.recall_window import RecallWindow

MATRIX = [
    "fifo",
    "sink-window",
    "tethercache",
    "grab-no-diversity",
    "tethercache-no-tame",
    "fademem",
    "rolling-sink",
    "ema-sink",
    "infinity-rope",
    "rolling-forcing",
    "longlive",
    "deep-forcing",
    "memrope",
    "key-norm",
    "forcing-kv",
    "tethercache-ramp",
    "tethercache-adaptive",
]
"""Recipes: each tests its stages with its options, at its key positions or others, in small regions."""

READING = ["h2o"]
"""Recipes that read keys from the live cache, which `stays_on_the_device` cannot move to another device."""


def forcing_kv() -> Pipeline:
    """With static heads of the suite's small models; the recipe's are the miniature's."""
    evict = RecallWindow(RecallWindow.Options(when="begin"), name="recall-window")
    options = ForcingKV.Options(static_heads=((), (0,)))
    return Pipeline(evict, select=ForcingKV(options, name="forcing-kv"))


test_policies_conform = conformance({name: name for name in MATRIX} | {"forcing-kv": forcing_kv})


def deep_forcing() -> Pipeline:
    """With so few frames left uncompressed that small regions have more to let go of than must leave."""
    return Pipeline(
        DeepForcing(DeepForcing.Options(recent=1), name="deep-forcing"),
        [Participation(name="participation")],
        CappedTopM(CappedTopM.Options(reuse=1), name="capped-top-m"),
    )


test_deep_forcing_conforms = conformance(deep_forcing)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule is not stays_on_the_device])
@pytest.mark.parametrize("name", READING)
def test_policies_that_read_the_cache_conform(name: str, rule: Rule) -> None:
    rule(Subject.of(name))


def test_every_stage_is_in_the_matrix() -> None:
    """A policy gets its tests by being listed; this says which one is not."""
    policies = [pipeline_of(load_recipe(name)) for name in [*MATRIX, *READING]]
    tested = {stage.name for policy in policies for stage in policy.stages}
    tested |= {each.name for policy in policies for of in policy.schedules.values() for each in of.values()}
    ours = {name for name in installed(POLICIES) if provider(POLICIES, name)[0] == "tetherflow"}
    assert ours - tested == set()
