"""A measurement of drift as files and on the terminal: JSON for programs, Markdown and a table for people."""

from __future__ import annotations

import json
from typing import Any

import attrs
from rich.markup import escape
from rich.table import Table

from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.drift_report import DriftReport
from tetherflow.report.provenance import Provenance
from tetherflow.report.table import drift_table, markdown_table, provenance_lines

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
    costs = _cost_section(report)
    return f"{tables}\n{intervals}\n\n{costs}{provenance_lines(provenance)}{_conditions(report)}"


def _cost_section(report: DriftReport) -> str:
    """Time and memory of every policy, if they were measured, and how."""
    first = report.policies[0]
    if first.cost is None:
        return ""
    return (
        f"**Cost**\n\n{markdown_table(_cost_headings(report), _cost_rows(report))}\n\n"
        f"Denoising and context passes of one video on {first.cost.device}, {first.cost.chunks} chunks, each "
        f"policy in turns with {first.name}; in brackets: 95 % intervals, by resampling the chunks. The "
        f"cache is that of one video, side stores included.\n\n"
    )


def _cost_headings(report: DriftReport) -> list[str]:
    return ["policy", "chunk", f"relative to {report.policies[0].name}", "cache"]


def _cost_rows(report: DriftReport) -> list[list[str]]:
    return [
        [
            policy.name,
            f"{1000 * policy.cost.chunk_seconds:.1f} ms",
            "–" if policy.cost.relative is None else f"{policy.cost.relative:.3f}",
            f"{policy.cost.cache_bytes / 2**20:.1f} MiB",
        ]
        for policy in report.policies
        if policy.cost is not None
    ]


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


def terminal_costs(report: DriftReport) -> Table | None:
    """Time and memory as a table for a terminal; None if they were not measured."""
    rows = _cost_rows(report)
    if not rows:
        return None
    table = Table(header_style="bold", pad_edge=False)
    for index, heading in enumerate(_cost_headings(report)):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _cell(estimate: Estimate, spec: str) -> str:
    return f"{estimate.value:{spec}}\n[dim]{estimate.low:{spec}}–{estimate.high:{spec}}[/dim]"
