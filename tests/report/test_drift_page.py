"""A measurement of drift as JSON, Markdown and a table."""

from __future__ import annotations

import io

import attrs
from rich.console import Console

from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.cost import PolicyCost
from tetherflow.evaluate.drift_report import DriftReport, PolicyDrift
from tetherflow.evaluate.figures import HorizonFigures
from tetherflow.report.drift_page import (
    HEADINGS,
    drift_json,
    drift_page,
    read_drift,
    terminal_costs,
    terminal_table,
)
from tetherflow.report.provenance import Provenance

FIGURES = [field.name for field in attrs.fields(HorizonFigures) if field.name != "horizon"]


def around(value: float) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.02)


def policy(name: str, start: float, share: list[Estimate | None] | None) -> PolicyDrift:
    lines = [
        HorizonFigures(horizon=h, **{f: around(start + i / 10 + h / 1000) for i, f in enumerate(FIGURES)})
        for h in (30.0, 240.0)
    ]
    cost = PolicyCost(0.2 * start, None if share is None else around(1.02), 3 * 2**20, 40, "cpu")
    return PolicyDrift(name, lines, share, cost, "float32", {"backbone": {"use": "mini"}})


REPORT = DriftReport(
    policies=[policy("fifo", 1, None), policy("tethercache", 2, [None, around(0.17)])],
    real=around(0.05),
    prompts=["a red circle", "ein Kreis, grün"],
    seeds=[2**62 + 1, 3],
    seed=5,
    window_frames=80,
    reference_clips=16,
    backbone="mini",
    weights_sha256="ab" * 32,
    device="cpu",
)
PROVENANCE = Provenance(
    "a processor, 2 cores", "2026-01-02T03:04Z", {"torch": "2.13.0"}, "tetherflow drift fifo"
)


def test_json_holds_everything_and_comes_back() -> None:
    text = drift_json(REPORT, PROVENANCE)
    assert read_drift(text) == (REPORT, PROVENANCE)
    assert "ein Kreis, grün" in text
    assert str(2**62 + 1) in text


def test_page_has_a_line_a_policy_at_every_horizon_and_says_how() -> None:
    page = drift_page(REPORT, PROVENANCE)
    table = [line for line in page.splitlines() if line.startswith(("| fifo", "| tethercache"))]
    assert len(table) == 4 + 2
    assert table[0].startswith(
        "| fifo | 1.030 [1.020, 1.050] | 1.130 [1.120, 1.150] | 1.230 [1.220, 1.250] | – |"
    )
    assert "| – |" in table[1]
    assert "| 0.17 [0.16, 0.19] |" in table[3]
    for part in (
        "0.050 [0.040, 0.070]",
        "- Command: `tetherflow drift fifo`",
        "- Date: 2026-01-02T03:04Z",
        f"- Backbone: mini, weights SHA-256 `{'ab' * 32}`",
        "- Generated on: cpu, float32",
        "- Videos: 2 a policy, of 240 s, one a prompt, seed 5",
        "- Reference: 16 held-out real clips of 80 frames of each prompt",
    ):
        assert part in page


def test_page_tells_what_policies_cost() -> None:
    page = drift_page(REPORT, PROVENANCE)
    costs = page[page.index("**Cost**") :].splitlines()
    assert costs[2] == "| policy | chunk | relative to fifo | cache |"
    assert costs[4:6] == [
        "| fifo | 200.0 ms | – | 3.0 MiB |",
        "| tethercache | 400.0 ms | 1.020 [1.010, 1.040] | 3.0 MiB |",
    ]
    assert costs[7].startswith("Denoising and context passes of one video on cpu, 40 chunks,")
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_costs(REPORT))
    assert "1.020 [1.010, 1.040]" in console.export_text()


def test_costs_that_were_not_measured_are_left_out() -> None:
    policies = [attrs.evolve(policy, cost=None) for policy in REPORT.policies]
    report = attrs.evolve(REPORT, policies=policies)
    assert "Cost" not in drift_page(report, PROVENANCE)
    assert terminal_costs(report) is None
    assert read_drift(drift_json(report, PROVENANCE))[0] == report


def test_terminal_table_shows_every_figure_above_its_interval() -> None:
    console = Console(width=180, file=io.StringIO(), record=True)
    console.print(terminal_table(REPORT))
    lines = console.export_text().splitlines()
    assert all(heading in lines[1] for heading in HEADINGS)
    (first,) = [index for index, line in enumerate(lines) if "tethercache" in line]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines[first : first + 4]]
    assert cells[0][:6] == ["tethercache", "30 s", "2.030", "2.130", "2.230", "–"]
    assert cells[2][:6] == ["", "240 s", "2.240", "2.340", "2.440", "0.17"]
    assert cells[3][2:6] == ["2.230–2.260", "2.330–2.360", "2.430–2.460", "0.16–0.19"]
    assert cells[2][-3:] == ["2.6400", "2.7400", "2.84"]
