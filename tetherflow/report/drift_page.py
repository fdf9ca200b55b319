"""A measurement of drift as files and on the terminal: JSON for programs, Markdown and a table for people."""

from __future__ import annotations

import json
from typing import Any

import attrs
from rich.table import Table

from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.drift import DriftReport
from tetherflow.report.provenance import Provenance
from tetherflow.report.table import drift_table, provenance_lines

HEADINGS = (
    "policy", "horizon", "first 5 s", "last 5 s", "drift", "share of first's", "colour shift",
    "motion first", "motion last", "motion kept",
)  # fmt: skip


def drift_json(report: DriftReport, provenance: Provenance) -> str:
    """All figures, and what they were measured on, as JSON; `read_drift` reads it."""
    data = {"provenance": attrs.asdict(provenance), "drift": report.to_dict()}
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def read_drift(text: str) -> tuple[DriftReport, Provenance]:
    """Read what `drift_json` gave."""
    data: dict[str, Any] = json.loads(text)
    return DriftReport.from_dict(data["drift"]), Provenance(**data["provenance"])


def drift_page(report: DriftReport, provenance: Provenance) -> str:
    """Tables of all figures in Markdown, and how they were measured; without a heading of its own."""
    tables = drift_table(
        {policy.name: policy.figures for policy in report.policies},
        shares={policy.name: policy.share for policy in report.policies if policy.share is not None},
        real=report.real,
    )
    intervals = (
        "In brackets: 95 % intervals, by resampling the prompts. Smaller is better, but for motion kept, "
        "which is best near 1."
    )
    return f"{tables}\n{intervals}\n\n{provenance_lines(provenance)}{_conditions(report)}"


def _conditions(report: DriftReport) -> str:
    """What was measured, as further lines of the provenance."""
    dtypes = ", ".join(dict.fromkeys(policy.dtype for policy in report.policies))
    horizon = report.policies[0].figures[-1].horizon
    return (
        f"- Backbone: {report.backbone}, weights SHA-256 `{report.weights_sha256}`\n"
        f"- Generated on: {report.device}, {dtypes}\n"
        f"- Videos: {len(report.prompts)} a policy, of {horizon:g} s, one a prompt, seed {report.seed}; "
        f"the same prompts and noise for all\n"
        f"- Reference: {report.reference_clips} held-out real clips of {report.window_frames} frames "
        f"of each prompt\n"
    )


def terminal_table(report: DriftReport) -> Table:
    """The figures as a table for a terminal, each interval below its figure."""
    table = Table(header_style="bold", pad_edge=False)
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for policy in report.policies:
        for index, line in enumerate(policy.figures):
            share = None if policy.share is None else policy.share[index]
            table.add_row(
                policy.name if index == 0 else "",
                f"{line.horizon:g} s",
                _cell(line.first, ".3f"),
                _cell(line.last, ".3f"),
                _cell(line.drift, ".3f"),
                "–" if share is None else _cell(share, ".2f"),
                _cell(line.colour_shift, ".3f"),
                _cell(line.motion_first, ".4f"),
                _cell(line.motion_last, ".4f"),
                _cell(line.motion_kept, ".2f"),
                end_section=index == len(policy.figures) - 1,
            )
    return table


def _cell(estimate: Estimate, spec: str) -> str:
    return f"{estimate.value:{spec}}\n[dim]{estimate.low:{spec}}–{estimate.high:{spec}}[/dim]"
