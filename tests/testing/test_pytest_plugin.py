"""The fixtures, as a third party's tests get them: from the installed plugin, without an import."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

from tetherflow import Candidates, Draft, Layout, Slots
from tetherflow.testing import complete
from tetherflow.testing.companions import Best, Scatter, Spread
from tetherflow.testing.pytest_plugin import Drive


def test_slots_are_a_full_layer(tetherflow_slots: Slots) -> None:
    slots = tetherflow_slots
    assert slots.held == slots.layout.budget == 6
    assert slots.origins.shape == (2, 6)
    assert bool((slots.origins.diff(dim=1) > 0).all())


def test_candidates_are_residents_and_newcomers(tetherflow_candidates: Candidates) -> None:
    candidates = tetherflow_candidates
    assert (candidates.residents, candidates.capacity) == (3, 3)
    assert candidates.origins.shape == (2, 5)
    assert candidates.read_keys().shape[:2] == (2, 5)
    assert candidates.mean_keys.shape[:2] == (2, 5)


def test_draft_is_of_newcomers(tetherflow_draft: Draft) -> None:
    assert tetherflow_draft.keys.shape[:2] == tetherflow_draft.admitted.shape == (2, 2)


def test_drive_takes_a_stage_a_class_or_a_policy(tetherflow_drive: Drive) -> None:
    for policy in (Spread, Spread(), complete(Best())):
        engine = tetherflow_drive(policy, chunks=5)
        assert (engine.chunk, engine.frames_written, engine.held) == (4, 10, 6)
    engine = tetherflow_drive(Scatter(), Layout(0, 2, 1), chunks=7, batch=3)
    assert engine.origins().shape == (2, 3, 3)


def test_plugin_is_registered() -> None:
    (entry,) = [entry for entry in entry_points(group="pytest11") if entry.name == "tetherflow"]
    assert entry.value == "tetherflow.testing.pytest_plugin"


def test_plugin_costs_other_test_runs_no_import_of_torch() -> None:
    code = (
        "import tetherflow.testing.pytest_plugin, sys; assert not {'torch', 'hypothesis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
