"""The drift figures of several policies as Markdown, ready for a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.figures import HorizonFigures
from tetherflow.report.provenance import Provenance


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, all others right.

    Args:
        header: one title a column.
        rows: as many cells each. A vertical bar in a cell is escaped.
    """
    ruler = ["---", *["---:"] * (len(header) - 1)]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ruler, *lines[1:]))


def drift_table(
    policies: Mapping[str, Sequence[HorizonFigures]],
    *,
    shares: Mapping[str, Sequence[Estimate | None]] | None = None,
    real: Estimate | None = None,
) -> str:
    """One table a horizon, one line a policy, every figure with its 95 % interval.

    Args:
        policies: figures by the policy's name, at the same horizons each.
        shares: each policy's drift as a share of the baseline's, by name, one a horizon; a policy that is
            not in it (the baseline) has a dash there, and so has a horizon with None.
        real: the quality of real clips, told above the tables.

    Returns:
        Markdown, without a heading of its own.

    Raises:
        EvaluationError: no policy, or policies with different horizons.
    """
    horizons = [[figures.horizon for figures in line] for line in policies.values()]
    if not horizons or any(line != horizons[0] for line in horizons):
        raise EvaluationError("a table needs at least one policy, and the same horizons for all")
    parts = []
    if real is not None:
        parts.append(f"Real clips, one of each prompt against the others of the same prompts: {real:.3f}.")
    header = [
        "policy",
        "first 5 s",
        "last 5 s",
        "drift",
        "colour shift",
        "motion, first → last",
        "motion kept",
    ]
    if shares:
        header.insert(4, "share of baseline's drift")
    for index, horizon in enumerate(horizons[0]):
        rows = []
        for name, line in policies.items():
            figures = line[index]
            row = [
                name,
                f"{figures.first:.3f}",
                f"{figures.last:.3f}",
                f"{figures.drift:.3f}",
                f"{figures.colour_shift:.3f}",
                f"{figures.motion_first.value:.4f} → {figures.motion_last.value:.4f}",
                f"{figures.motion_kept:.2f}",
            ]
            if shares:
                share = shares[name][index] if name in shares else None
                row.insert(4, "–" if share is None else f"{share:.2f}")
            rows.append(row)
        parts.append(f"**{horizon:g} s**\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts) + "\n"


def provenance_lines(provenance: Provenance) -> str:
    """Machine, date, versions and command as a Markdown list."""
    versions = ", ".join(f"{name} {number}" for name, number in provenance.versions.items())
    return (
        f"- Machine: {provenance.machine}\n- Date: {provenance.date}\n"
        f"- Versions: {versions}\n- Command: `{provenance.command}`\n"
    )
