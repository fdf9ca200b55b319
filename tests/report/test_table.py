"""The drift table."""

from __future__ import annotations

import sys
from importlib.metadata import version

import pytest
import torch

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.figures import HorizonFigures
from tetherflow.report.provenance import Provenance
from tetherflow.report.table import drift_table, markdown_table, provenance_lines


def figures(horizon: float, drift: float) -> HorizonFigures:
    def around(value: float) -> Estimate:
        return Estimate(value, value - 0.01, value + 0.01)

    return HorizonFigures(
        horizon=horizon,
        first=around(0.4),
        last=around(0.4 + drift),
        drift=around(drift),
        colour_shift=around(0.02),
        motion_first=around(0.0285),
        motion_last=around(0.0302),
        motion_kept=around(1.06),
    )


def test_a_table_has_a_line_a_policy_at_every_horizon() -> None:
    text = drift_table(
        {
            "fifo": [figures(30, 1.5), figures(240, 3.0)],
            "tethercache": [figures(30, 0.1), figures(240, 0.04)],
        },
        shares={"tethercache": [Estimate(0.07, 0.05, 0.09), Estimate(0.0133, 0.01, 0.02)]},
        real=Estimate(0.066, 0.05, 0.08),
    )
    lines = text.splitlines()
    assert lines[0].endswith("against the others of the same prompts: 0.066 [0.050, 0.080].")
    assert [line for line in lines if line.startswith("**")] == ["**30 s**", "**240 s**"]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 * 4
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith(
        "| fifo | 0.400 [0.390, 0.410] | 1.900 [1.890, 1.910] | 1.500 [1.490, 1.510] | – |"
    )
    assert "| 0.01 [0.01, 0.02] |" in table[-1]
    assert "| 0.0285 → 0.0302 |" in table[-1]
    assert table[-1].endswith("| 1.06 [1.05, 1.07] |")


def test_without_a_baseline_there_is_no_share() -> None:
    assert "share" not in drift_table({"fifo": [figures(30, 1.5)]})


def test_policies_with_other_horizons_are_refused() -> None:
    for policies in ({}, {"a": [figures(30, 1)], "b": [figures(60, 1)]}):
        with pytest.raises(EvaluationError, match="same horizons"):
            drift_table(policies)


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_provenance_says_where_when_and_how() -> None:
    here = Provenance.here(["tetherflow", "drift", "my recipe.yaml"], device=torch.device("cpu"))
    text = provenance_lines(here)
    assert "`tetherflow drift 'my recipe.yaml'`" in text
    assert f"torch {version('torch')}" in text
    assert f"python {sys.version_info.major}.{sys.version_info.minor}" in text
    assert "cores" in here.machine
    assert here.date.endswith("Z")
