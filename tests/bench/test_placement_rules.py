from __future__ import annotations

from itertools import pairwise

import pytest

from bench.fleets import KINDS, LAYERS, fleet
from bench.placement_rules import RULES, not_rising, proportional, ring_anchors


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", list(RULES))
def test_windows_are_contiguous_and_within_their_machines(kind: str, name: str) -> None:
    machines = fleet(kind, 9, 2)
    rooms = {peer.node: peer.room for peer in machines}
    windows = RULES[name](machines, {})
    assert windows
    for node, (start, stop) in windows.items():
        assert 0 <= start < LAYERS
        assert start < stop <= start + rooms[node]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("seed", range(4))
def test_ring_anchors_leave_no_gap_where_memory_suffices(kind: str, seed: int) -> None:
    windows = ring_anchors(fleet(kind, 12, seed), {})
    assert {layer % LAYERS for window in windows.values() for layer in range(*window)} == set(
        range(LAYERS)
    )


def test_a_proportional_split_gives_every_layer_to_one_machine() -> None:
    windows = sorted(proportional(fleet("mixed", 7, 1), {}).values())
    assert windows[0][0] == 0
    assert windows[-1][1] == LAYERS
    assert all(left[1] == right[0] for left, right in pairwise(windows))


def test_the_nearest_sequence_that_never_rises_pools_what_does() -> None:
    assert not_rising([5.0, 1.0, 3.0, 0.0]) == [5.0, 2.0, 2.0, 0.0]
    assert not_rising([1.0, 2.0, 6.0]) == [3.0, 3.0, 3.0]
