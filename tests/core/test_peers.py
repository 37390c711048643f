from __future__ import annotations

import pytest

from p2pllm.core.peers import Peer, Suspicion
from sim.swarms import address_of, node_id


def test_a_suspicion_shrinks_with_each_independent_confirmation() -> None:
    suspicion = Suspicion(10.0, 4.0, 24.0, 2, [node_id(1)])
    assert suspicion.ends_s == 34.0
    assert not suspicion.confirm(node_id(1))
    assert suspicion.confirm(node_id(2))
    assert 14.0 < suspicion.ends_s < 34.0
    assert suspicion.confirm(node_id(3))
    assert suspicion.ends_s == 14.0
    assert not suspicion.confirm(node_id(4))
    assert suspicion.accusers == [node_id(1), node_id(2), node_id(3)]


def test_a_suspicion_nobody_can_confirm_is_short_at_once() -> None:
    assert Suspicion(10.0, 4.0, 24.0, 0, [node_id(1)]).ends_s == pytest.approx(14.0)


def test_addresses_are_tried_in_turn_from_the_one_that_last_worked() -> None:
    peer = Peer(node_id(1), 1, (address_of(1), address_of(2)), False)
    assert peer.reachable_at() == (address_of(1), address_of(2))
    peer.source = address_of(2)
    assert peer.reachable_at() == (address_of(2), address_of(1))
    peer.attempt = 3
    assert peer.reachable_at() == (address_of(1), address_of(2))
    assert Peer(node_id(1), 1, (), False).reachable_at() == ()
