from __future__ import annotations

import pytest

from p2pllm.core import discovery
from p2pllm.core.discovery import Discovery, DiscoveryConfig
from sim.swarms import address_of, node_id


def test_an_address_is_pinged_with_growing_pauses_and_then_forgotten() -> None:
    found = Discovery(DiscoveryConfig(first_pause_s=1.0, longest_pause_s=4.0, attempts=4))
    assert found.add(address_of(1), None, 0.0)
    times: list[float] = []
    while (at := found.deadline()) is not None:
        found.check()
        if found.due(at, alone=False):
            times.append(at)
    assert times == [0.0, 1.0, 3.0, 7.0]
    assert len(found) == 0


def test_nothing_is_forgotten_while_alone() -> None:
    found = Discovery(DiscoveryConfig(attempts=1))
    found.add(address_of(1), None, 0.0)
    for _ in range(10):
        at = found.deadline()
        assert at is not None
        assert found.due(at, alone=True)


def test_an_answer_from_the_address_the_node_or_to_the_ping_ends_it() -> None:
    for source, sender, sequence in ((1, 8, None), (9, 7, None), (9, 8, 5)):
        found = Discovery(DiscoveryConfig())
        found.add(address_of(1), None, 0.0)
        assert not found.add(address_of(1), node_id(7), 0.0)
        found.due(0.0, alone=True)[0].sequence = 5
        found.answered(address_of(9), node_id(9), 4)
        assert len(found) == 1
        found.answered(address_of(source), node_id(sender), sequence)
        assert len(found) == 0
        found.answered(address_of(source), node_id(sender), sequence)


def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SEEDS_MAX", 1)
    found = Discovery(DiscoveryConfig())
    assert found.add(address_of(1), None, 0.0)
    assert not found.add(address_of(2), None, 0.0)
    found.check()
