"""The named scenarios; each file has those of one subject."""

from __future__ import annotations

from collections.abc import Mapping

from sim.scenario import Scenario, UsageError
from sim.scenarios import failing, generating, parting, spreading

SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        *spreading.SCENARIOS,
        *failing.SCENARIOS,
        *parting.SCENARIOS,
        *generating.SCENARIOS,
    )
}


def scenario_of(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        UsageError: there is none.
    """
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise UsageError(f"no scenario is called {name}; there are {', '.join(SCENARIOS)}")
    return scenario
