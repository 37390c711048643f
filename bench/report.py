"""Findings as tables, ratios first, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Finding
from bench.machine import Machine

JSON_VERSION = 1


def to_json(machine: Machine, findings: Sequence[Finding], elapsed_s: float) -> str:
    """One document for everything that was measured."""
    content = {
        "version": JSON_VERSION,
        "machine": machine.as_json(),
        "elapsed_s": round(elapsed_s, 1),
        "findings": [finding.as_json() for finding in findings],
    }
    return json.dumps(content, indent=2)


def to_table(finding: Finding) -> Table:
    """One finding as a table."""
    settings = ", ".join(f"{name} {value}" for name, value in finding.settings.items())
    table = Table(title=f"{finding.question}: {finding.subject}", caption=settings)
    table.add_column("ratio", justify="right", style="bold")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("min..max", justify="right")
    table.add_column("unit")
    table.add_column("compared with")
    for figure in finding.figures:
        table.add_row(*row(finding, figure))
    return table


def row(finding: Finding, figure: Figure) -> tuple[str, ...]:
    """The cells of one figure."""
    summary, ratio = figure.summary, finding.ratio(figure)
    spread = ""
    if summary.count > 1:
        spread = f"{number(summary.minimum)}..{number(summary.maximum)} ({summary.count})"
    return (
        "" if ratio is None else f"{ratio:.2f}",
        figure.name,
        number(summary.median),
        spread,
        figure.unit,
        figure.against or "",
    )


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    if magnitude >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}"


def print_machine(console: Console, machine: Machine) -> None:
    """What it ran on, and whether to trust it."""
    console.print(
        f"{machine.processor}, {machine.cores} cores, {machine.system}; load {machine.load_1m:.2f},"
        f" busy {machine.busy_percent:.0f} %; Python {machine.python}, torch {machine.torch}, "
        f"transformers {machine.transformers}",
        highlight=False,
    )
    if machine.warning is not None:
        console.print(machine.warning, style="bold yellow", highlight=False)
