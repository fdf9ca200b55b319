"""Scheduled options in a recipe: built, spelt out, and provided by a stranger's package."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest

from tests.toys import register
from tetherflow.errors import PluginError
from tetherflow.evaluate.shelf import code_digest
from tetherflow.plugins import list_plugins, load_schedule
from tetherflow.recipe import Recipe, dump_recipe, layout_of, load_recipe, pipeline_of
from tetherflow.testing import Model, Subject, run, write_script
from tetherflow.testing.device import HostReadWarning, stays_on_the_device
from tetherflow_policies.drift_distance import DriftDistance
from tetherflow_policies.ramp import Ramp

PAGE = Path(__file__).parents[2] / "docs" / "schedules.md"
RAMP = "{use: ramp, from: 0.3, to: 0.8, start: 10s, seconds: 120}"
SWING = "stages.edit.0.tau={use: wave, low: 0.2, high: 0.8}"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package that the documentation shows, as if it were installed; returns its module."""
    code, entries = (
        next(text for text in re.findall(rf"```{kind}[^\n]*\n(.*?)```", PAGE.read_text(), re.DOTALL))
        for kind in ("python", "toml")
    )
    module = tmp_path / "my_package.py"
    module.write_text(code)
    registered = entries.replace('[project.entry-points."tetherflow.policies"]', "[tetherflow.policies]")
    register(tmp_path, "my-package", registered.replace('"', ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    return module


def test_schedules_reach_the_pipeline_with_the_backbones_clock() -> None:
    recipe = load_recipe("tethercache-adaptive", [f"stages.score.1.alpha={RAMP}"])
    policy = pipeline_of(recipe)
    assert policy.frame_seconds == 4 / 16
    alpha, tau = policy.schedules["temporal-diversity"]["alpha"], policy.schedules["tame"]["tau"]
    assert isinstance(alpha, Ramp)
    assert alpha.at(70) == pytest.approx(0.55)
    assert isinstance(tau, DriftDistance)
    assert tau.bounds == (0.3, 0.9)


def test_a_resolved_schedule_is_spelt_out_and_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe("tethercache", [f"stages.edit.0.tau={RAMP}"])
    spelt = {"use": "ramp", "from": 0.3, "to": 0.8, "start": 10.0, "seconds": 120.0}
    assert recipe.stages.edit[0].options == {"tau": spelt}
    path = tmp_path / "tethercache.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_a_recipe_above_changes_a_schedule_or_replaces_it() -> None:
    def tau(*changes: str) -> object:
        return load_recipe("tethercache-ramp", changes).stages.edit[0].options["tau"]

    assert tau("stages.edit.0.tau.to=0.9")["to"] == 0.9  # type: ignore[index]
    assert tau("stages.edit.0.tau=0.4") == 0.4


def test_a_strangers_schedules_are_listed_checked_and_run(stranger: Path) -> None:
    listed = {plugin.name: plugin for plugin in list_plugins()}
    assert (listed["wave"].stage, listed["wave"].distribution) == ("schedule", "my-package")
    spread = "stages.score.1.alpha={use: spread}"
    recipe = load_recipe("tethercache", ["cache={budget: 7, regions: {sink: 1, memory: 3}}", SWING, spread])
    policy = pipeline_of(recipe)
    assert policy.schedules["tame"]["tau"].at(10.0) == pytest.approx(0.8)  # type: ignore[attr-defined]
    model = Model(layers=2, grid=(2, 2))
    engine = model.engine(layout_of(recipe), policy, batch=2)
    record = run(engine, write_script(model, [3] * 6, seeds=[1, 2]))
    assert all(bool(attended.isfinite().all()) for attended in record.attended)


def test_a_schedules_package_decides_what_is_measured_anew(stranger: Path) -> None:
    def digest(*changes: str) -> str:
        return code_digest(recipe(*changes))

    def recipe(*changes: str) -> Recipe:
        return load_recipe("tethercache", changes)

    plain, swinging = digest(), digest(SWING)
    stranger.write_text(stranger.read_text() + "# changed\n")
    assert digest(SWING) != swinging
    assert digest() == plain


def test_a_stage_is_no_schedule() -> None:
    with pytest.raises(
        PluginError, match="plugin 'tame' is of stage 'edit' and cannot be used as a schedule"
    ):
        load_schedule("tame")
    with pytest.raises(
        PluginError, match="no schedule plugin named 'rampp' is installed; did you mean 'ramp'"
    ):
        load_schedule("rampp")


def test_nothing_is_read_on_the_host_where_signals_drive_options(tmp_path: Path) -> None:
    signal = "{use: drift-distance, low: 0, high: 0.5}"
    recipe = (
        f"extends: tethercache\nstages:\n  score: [relevance, {{use: temporal-diversity, alpha: {signal}}}]\n"
    )
    path = tmp_path / "measured.yaml"
    path.write_text(recipe + f"  edit: [{{use: tame, tau: {signal}}}]\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error", HostReadWarning)
        stays_on_the_device(Subject.of(path))
