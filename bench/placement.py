"""The scoreboard of placement: how good plans are and what changes cost, rule beside rule.

Each run starts from a fleet that holds nothing and lets machines come and go; each rule plans after
every change, and what it plans is taken as carried out. Per plan:

flow      best throughput of any routing (a maximum flow from machines to layers) ÷ its bound
hops      fewest hops of a path ÷ the fewest that any placement could have
moved     layers loaded by anyone ÷ room of the machine that came or went; 0.5 on average is the
          least, since a joiner fills up and a leave need move nothing
covered   part of the layers that have a holder; the fleets' memory always suffices
planning  seconds

A plan that does not cover all layers has flow 0 and does not count in hops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from rich.table import Table
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from bench.figures import Finding, percentile
from bench.fleets import (
    KINDS,
    LAYERS,
    Fleet,
    churn,
    fleet,
    hops_bound,
    throughput_bound,
)
from bench.placement_rules import RULES, Rule, Windows
from p2pllm.core.capacity import Window
from p2pllm.core.throughput import hops_min, spans_of, throughput
from p2pllm.domain.ids import NodeId

SIZES = (2, 4, 8, 16, 32, 64)
QUESTION = "placement"
FLOW_UNIT = 1_000_000
"""Integer capacities of the maximum flow: passes over one layer."""

COLUMNS = {
    "flow": "÷ bound",
    "hops": "÷ bound",
    "moved": "÷ room changed",
    "covered": "of layers",
    "planning": "ms",
}


@dataclass(slots=True)
class Scores:
    """One rule's samples over some fleets of one size, by column."""

    samples: dict[str, list[float]] = field(
        default_factory=lambda: {name: list[float]() for name in COLUMNS}
    )

    def add(self, **values: float) -> None:
        """Append one sample to each of these columns."""
        for name, value in values.items():
            self.samples[name].append(value)


async def measure(
    *, sizes: Sequence[int], seeds: int, steps: int, say: Callable[[str], None]
) -> list[Finding]:
    """One finding per kind of fleet."""
    findings: list[Finding] = []
    for kind in KINDS:
        finding = Finding(
            QUESTION, kind, {"layers": LAYERS, "seeds": seeds, "joins and leaves": steps}
        )
        for size in sizes:
            scores = {name: Scores() for name in RULES}
            started_s = time.monotonic()
            for seed in range(seeds):
                for name, rule in RULES.items():
                    play(kind, size, seed, steps, rule, scores[name])
            for name, score in scores.items():
                for column, unit in COLUMNS.items():
                    if score.samples[column]:
                        finding.add(f"{size} {name}: {column}", unit, score.samples[column])
            say(f"placement: {kind}, {size} machines, {time.monotonic() - started_s:.1f} s")
        findings.append(finding)
    return findings


def play(kind: str, size: int, seed: int, steps: int, rule: Rule, scores: Scores) -> None:
    """One fleet from its start through all joins and leaves."""
    start = fleet(kind, size, seed)
    held = judge(start, {}, rule, scores, None)
    for now, changed in churn(kind, start, seed, steps):
        staying = {peer.node for peer in now}
        held = {node: window for node, window in held.items() if node in staying}
        held = judge(now, held, rule, scores, changed.room)


def judge(
    peers: Fleet, held: Mapping[NodeId, Window], rule: Rule, scores: Scores, changed: int | None
) -> Windows:
    """Plan once; what was planned."""
    started_s = time.perf_counter()
    windows = rule(peers, held)
    scores.add(planning=(time.perf_counter() - started_s) * 1_000)
    covered = len({layer % LAYERS for window in windows.values() for layer in range(*window)})
    scores.add(covered=covered / LAYERS, flow=flow(peers, windows) / throughput_bound(peers))
    if covered == LAYERS:
        hops = hops_min([windows.get(peer.node) for peer in peers], LAYERS)
        scores.add(hops=hops / hops_bound(peers))
    if changed is not None:
        scores.add(moved=loaded(held, windows) / changed)
    return windows


def loaded(held: Mapping[NodeId, Window], windows: Mapping[NodeId, Window]) -> int:
    """Layers that have to be loaded to get from `held` to `windows`."""

    def layers(window: Window | None) -> set[int]:
        return {layer % LAYERS for layer in range(*window)} if window is not None else set()

    return sum(len(layers(window) - layers(held.get(node))) for node, window in windows.items())


def flow(peers: Fleet, windows: Mapping[NodeId, Window]) -> float:
    """Passes per second that the best routing reaches."""
    listed = [windows.get(peer.node) for peer in peers]
    rates = [peer.rate for peer in peers]
    if any(window is not None and window[1] > LAYERS for window in listed):
        # The sweep of the core gives but a lower bound here.
        return maximum(listed, rates)
    return throughput(spans_of(listed, range(LAYERS + 1), LAYERS), rates, LAYERS)


def maximum(windows: Sequence[Window | None], rates: Sequence[float]) -> float:
    """The same for windows that may wrap, by maximum flows: machines -> layers held."""
    edges = [
        (1 + index, 1 + len(windows) + layer % LAYERS, FLOW_UNIT)
        for index, window in enumerate(windows)
        if window is not None
        for layer in range(*window)
    ]
    sink = 1 + len(windows) + LAYERS
    edges += [(1 + len(windows) + layer, sink, FLOW_UNIT) for layer in range(LAYERS)]
    low, high = 0.0, sum(rates) / LAYERS
    for _ in range(12):
        target = (low + high) / 2
        given = [
            (0, 1 + index, min(FLOW_UNIT * LAYERS, round(rate / target * FLOW_UNIT)))
            for index, rate in enumerate(rates)
        ]
        rows, columns, capacities = (
            np.array(values, dtype=np.int32) for values in zip(*given, *edges, strict=True)
        )
        graph = csr_array((capacities, (rows, columns)), shape=(sink + 1, sink + 1))
        if maximum_flow(graph, 0, sink).flow_value >= FLOW_UNIT * LAYERS - LAYERS:
            low = target
        else:
            high = target
    return low


def to_table(finding: Finding) -> Table:
    """Rule beside rule, a line per size and rule; means, and of flow the least."""
    settings = ", ".join(f"{name} {value}" for name, value in finding.settings.items())
    table = Table(title=f"{finding.question}: {finding.subject} fleets", caption=settings)
    for heading in ("machines", "rule", "flow", "min", "hops", "moved", "covered"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    table.add_column("planning p50 ms", justify="right")
    table.add_column("max", justify="right")
    lines: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {}
    for figure in finding.figures:
        place, column = figure.name.rsplit(": ", 1)
        size, rule = place.split(" ", 1)
        lines.setdefault((size, rule), {})[column] = figure.samples
    previous = ""
    for (size, rule), samples in lines.items():
        if previous not in ("", size):
            table.add_section()
        table.add_row("" if size == previous else size, rule, *_cells(samples))
        previous = size
    return table


def _cells(samples: Mapping[str, Sequence[float]]) -> list[str]:
    def mean(column: str) -> str:
        return f"{fmean(samples[column]):.3f}" if column in samples else "-"

    return [
        mean("flow"),
        f"{min(samples['flow']):.3f}",
        mean("hops"),
        mean("moved"),
        mean("covered"),
        f"{percentile(samples['planning'], 50):.1f}",
        f"{max(samples['planning']):.1f}",
    ]
