from __future__ import annotations

from p2pllm.core.blacklist import PEERS_MAX, Blacklist
from tests.core.swarm_worlds import node_id

A, B = node_id(1), node_id(2)


def test_a_failed_peer_is_out_for_the_base_time() -> None:
    blacklist = Blacklist(base_s=2.0)
    blacklist.add(A, 10.0)
    assert blacklist.active(11.9) == {A}
    assert blacklist.next_change(11.0) == 12.0
    assert blacklist.active(12.0) == frozenset()
    assert blacklist.next_change(12.0) is None


def test_repeated_failures_double_the_time_up_to_the_bound() -> None:
    blacklist = Blacklist(base_s=1.0, max_s=5.0)
    now = 0.0
    for period in (1.0, 2.0, 4.0, 5.0, 5.0):
        blacklist.add(A, now)
        assert blacklist.next_change(now) == now + period
        now += period
        blacklist.check()


def test_failures_while_it_is_out_count_once() -> None:
    blacklist = Blacklist(base_s=2.0)
    blacklist.add(A, 0.0)
    blacklist.add(A, 1.0)
    assert blacklist.active(2.0) == frozenset()


def test_success_clears_a_peer_and_its_history() -> None:
    blacklist = Blacklist(base_s=1.0)
    blacklist.add(A, 0.0)
    blacklist.add(B, 0.0)
    blacklist.succeeded(A)
    assert blacklist.active(0.5) == {B}
    blacklist.add(A, 2.0)
    assert blacklist.active(3.0) == frozenset()


def test_old_failures_are_forgotten() -> None:
    blacklist = Blacklist(base_s=1.0, max_s=4.0)
    blacklist.add(A, 0.0)
    blacklist.add(A, 100.0)
    assert blacklist.next_change(100.0) == 101.0


def test_its_size_is_bounded() -> None:
    blacklist = Blacklist()
    for number in range(PEERS_MAX + 10):
        blacklist.add(node_id(number), float(number) / 1_000)
    blacklist.check()
    assert node_id(0) not in blacklist.active(1.0)
