"""Hunts for seeds under which an oracle is violated.

Each seed also decides how large the swarm is, how bad the network, and how the scenario is set, so
that a range of seeds covers many shapes of trouble. Swarms are small: nearly every mistake shows in
a few nodes, and small runs are many runs.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Iterable, Iterator

from sim.scenario import Outcome, Plan, Run, Scenario
from sim.scenarios.parting import KINDS

LOSSES = (0.0, 0.0, 0.05, 0.1, 0.2, 0.3)
DUPLICATIONS = ("0", "0.02", "0.05")
JITTERS_MS = ("0.5", "10", "100", "400")
"""The last one overtakes whole rounds of gossip, and now and then a probe's patience."""

_SHORTER: dict[str, dict[str, tuple[str, ...]]] = {
    "convergence": {"updates": ("5",)},
    "detection": {"crashes": ("2", "4")},
    "steady": {"minutes": ("1",), "loads": ("0", "1")},
    "join-storm": {"over_s": ("0", "1", "10")},
    "churn": {
        "minutes": ("1", "2"),
        "per_minute": ("0.5", "1", "3"),
        "graceful": ("0", "0.3", "1"),
        "away_s": ("2", "10", "30"),
    },
    "mass-restart": {"forgets": ("0", "0.5", "1"), "off_s": ("0", "1", "60"), "over_s": ("0", "5")},
    "partition": {"kind": KINDS, "lasts_s": ("5", "20", "60")},
    "flapping": {
        "minutes": ("1", "2"),
        "share": ("0.1", "0.3"),
        "off_s": ("1", "5", "20"),
        "on_s": ("1", "5", "20"),
    },
    "laptop-sleep": {"sleep_s": ("2", "20", "90"), "share": ("0.2", "0.5", "0.9")},
    "generation": {"requests": ("8",), "lasts_s": ("15",), "crashes": ("1", "2", "3")},
}
"""Values tried of some knobs, by scenario."""


def plan_of(scenario: Scenario, seed: int) -> Plan:
    """The trouble that `seed` stands for."""
    chance = random_module.Random(f"search {scenario.name} {seed}")
    nodes = max(scenario.nodes_min, chance.randint(3, 12))
    values = {
        name: chance.choice(choices) for name, choices in _SHORTER.get(scenario.name, {}).items()
    }
    values["duplication"] = chance.choice(DUPLICATIONS)
    values["jitter_ms"] = chance.choice(JITTERS_MS)
    return Plan(scenario.name, nodes, seed, chance.choice(LOSSES), values)


def search(
    seeds: Iterable[int], scenarios: Iterable[Scenario], report: Callable[[str], None]
) -> Iterator[Outcome]:
    """Run every scenario under every seed, one seed after the other."""
    chosen = list(scenarios)
    for seed in seeds:
        for scenario in chosen:
            yield Run(plan_of(scenario, seed), scenario, report).play(scenario)
