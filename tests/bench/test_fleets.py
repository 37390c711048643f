from __future__ import annotations

import pytest

from bench.fleets import KINDS, LAYERS, churn, fleet


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("size", [2, 5, 40, 300])
def test_a_fleet_follows_from_its_seed_and_can_hold_the_model(kind: str, size: int) -> None:
    machines = fleet(kind, size, 3)
    assert machines == fleet(kind, size, 3) != fleet(kind, size, 4)
    assert len(machines) == size
    assert [peer.node for peer in machines] == sorted(peer.node for peer in machines)
    assert sum(peer.room for peer in machines) >= LAYERS
    assert all(1 <= peer.room <= LAYERS for peer in machines)


@pytest.mark.parametrize("kind", list(KINDS))
def test_joins_and_leaves_alternate_and_memory_always_suffices(kind: str) -> None:
    start = fleet(kind, 6, 1)
    steps = list(churn(kind, start, 1, 10))
    assert steps == list(churn(kind, start, 1, 10))
    assert [len(now) for now, _ in steps] == [7, 6] * 5
    for number, (now, changed) in enumerate(steps):
        assert (changed in now) == (number % 2 == 0)
        assert sum(peer.room for peer in now) >= LAYERS
