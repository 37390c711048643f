from __future__ import annotations

import asyncio
from random import Random

import pytest

from bench import placement
from bench.fleets import KINDS, LAYERS, fleet, hops_bound, throughput_bound
from bench.placement import Scores, flow, loaded, maximum, to_table
from bench.placement_rules import RULES
from p2pllm.core.throughput import spans_of, throughput
from p2pllm.domain.ids import NodeId


@pytest.mark.parametrize("seed", range(12))
def test_the_sweep_of_the_core_finds_the_maximum_flow(seed: int) -> None:
    random = Random(seed)
    windows = []
    for _ in range(random.randint(3, 30)):
        start = random.randrange(LAYERS)
        windows.append((start, random.randint(start + 1, LAYERS)))
    windows += [(0, 50), (30, LAYERS)]
    rates = [random.uniform(1, 16) for _ in windows]
    found = throughput(spans_of(windows, range(LAYERS + 1), LAYERS), rates, LAYERS)
    assert found == pytest.approx(maximum(windows, rates), rel=0.01)


def test_a_window_that_wraps_shares_one_speed_between_both_ends() -> None:
    assert maximum([(60, 100), (20, 60)], [40.0, 40.0]) == pytest.approx(1.0, rel=0.01)
    assert maximum([(60, 100)], [40.0]) == 0.0


def test_no_plan_beats_the_bounds() -> None:
    for kind in KINDS:
        machines = fleet(kind, 6, 5)
        bound = throughput_bound(machines)
        for rule in RULES.values():
            assert flow(machines, rule(machines, {})) <= bound * 1.005
        assert 1 <= hops_bound(machines) <= 6


def test_loaded_counts_what_was_not_held_before() -> None:
    node, other = NodeId("1" * 32), NodeId("2" * 32)
    assert loaded({node: (70, 85)}, {node: (75, 90), other: (0, 10)}) == 5 + 10
    assert loaded({node: (0, 10)}, {}) == 0


def test_the_scoreboard_sets_rule_beside_rule() -> None:
    said: list[str] = []
    findings = asyncio.run(placement.measure(sizes=[3], seeds=1, steps=2, say=said.append))
    assert [finding.subject for finding in findings] == list(KINDS)
    assert len(said) == len(KINDS)
    table = to_table(findings[0])
    assert table.row_count == len(RULES)
    flows = [figure for figure in findings[0].figures if figure.name == "3 ours: flow"]
    assert len(flows[0].samples) == 3
    assert set(Scores().samples) == set(placement.COLUMNS)
