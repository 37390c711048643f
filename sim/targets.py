"""What the figures should be; see `docs/simulation.md`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from sim.scenario import Figure

SIZES = (10, 100, 1_000, 10_000)

Row = tuple[float, float, float, float]


def _rounds(loss: float) -> Row | None:
    if loss <= 0.1:
        return (6, 8, 10, 12)
    return (10, 12, 14, 16) if loss <= 0.3 else None


def _false_deaths(loss: float) -> Row | None:
    if loss <= 0.1:
        return (0, 0, 0, 0)
    if loss <= 0.2:
        return (0.05, 0.05, 0.05, 0.05)
    return (0.2, 0.2, 0.2, 0.2) if loss <= 0.3 else None


def targets(scenario: str, nodes: int, loss: float) -> Mapping[str, float]:
    """The most that each figure of a scenario should be, at the next size that has targets."""
    rows: dict[str, Row | None] = {}
    if scenario == "convergence":
        rows["rounds_to_99_percent_p50"] = _rounds(loss)
    elif scenario == "detection":
        rows["first_detection_s_p50"] = (6, 11, 15, 19)
    elif scenario == "steady":
        rows["false_deaths_per_node_hour"] = _false_deaths(loss)
        rows["sent_kb_s_per_node"] = (2, 8, 32, 64)
    column = bisect_left(SIZES, nodes)
    if column == len(SIZES):
        return {}
    return {name: row[column] for name, row in rows.items() if row is not None}


def compared(
    scenario: str, nodes: int, loss: float, figures: Mapping[str, Figure]
) -> dict[str, dict[str, Figure | bool]]:
    """Figures beside their targets."""
    result: dict[str, dict[str, Figure | bool]] = {}
    for name, most in targets(scenario, nodes, loss).items():
        value = figures.get(name)
        met = isinstance(value, float | int) and value <= most
        result[name] = {"measured": value, "at_most": most, "met": met}
    return result
