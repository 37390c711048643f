from __future__ import annotations

import random

import pytest

from p2pllm.core.kvblocks import KvRoom, kv_bytes
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import LayerRun
from tests.core.generation_world import make_spec, session_id


def test_the_size_is_tokens_times_elements_of_the_layers_times_element_bytes() -> None:
    spec = make_spec(6)
    assert kv_bytes(spec, [LayerRange(1, 3)], tokens=10, element_bytes=2) == 10 * 2 * 4 * 2
    assert kv_bytes(spec, [], tokens=10, element_bytes=2) == 0


def test_layers_of_different_sizes_are_summed_one_by_one() -> None:
    from dataclasses import replace

    spec = replace(make_spec(), runs=(LayerRun(2, 10, 4), LayerRun(2, 10, 100)))
    ranges = [LayerRange(0, 1), LayerRange(3, 4)]
    assert kv_bytes(spec, ranges, tokens=1, element_bytes=1) == 104


def test_room_is_promised_until_it_is_full() -> None:
    room = KvRoom(100, leases_max=10)
    assert room.lease(session_id(0), 1, 60)
    assert not room.lease(session_id(1), 1, 41)
    assert room.lease(session_id(1), 1, 40)
    assert (room.used_bytes, room.free_bytes, len(room)) == (100, 0, 2)
    room.check()


def test_a_lease_comes_back_once() -> None:
    room = KvRoom(100, leases_max=10)
    assert room.lease(session_id(0), 1, 60)
    assert room.release(session_id(0), 1) == 60
    with pytest.raises(ValueError, match="once"):
        room.release(session_id(0), 1)
    assert room.free_bytes == 100
    room.check()


def test_an_attempt_has_one_lease_and_never_a_negative_one() -> None:
    room = KvRoom(100, leases_max=10)
    assert room.lease(session_id(0), 1, 1)
    with pytest.raises(ValueError, match="no second lease"):
        room.lease(session_id(0), 1, 1)
    with pytest.raises(ValueError, match="-1 bytes"):
        room.lease(session_id(1), 1, -1)
    assert room.lease(session_id(0), 2, 1)
    room.check()


def test_leases_are_counted_and_bounded() -> None:
    room = KvRoom(100, leases_max=2)
    assert room.lease(session_id(0), 1, 0)
    assert room.lease(session_id(1), 1, 0)
    assert not room.lease(session_id(2), 1, 0)
    room.check()


def test_capacity_may_shrink_below_what_is_leased() -> None:
    room = KvRoom(100, leases_max=10)
    assert room.lease(session_id(0), 1, 60)
    room.capacity_bytes = 50
    assert (room.capacity_bytes, room.free_bytes) == (50, 0)
    assert not room.lease(session_id(1), 1, 1)
    room.release(session_id(0), 1)
    assert room.lease(session_id(1), 1, 50)
    room.check()


def test_the_books_balance_whatever_is_leased_and_released() -> None:
    chance = random.Random(7)
    room = KvRoom(1_000, leases_max=20)
    held: dict = {}
    for step in range(2_000):
        if held and chance.random() < 0.5:
            key = chance.choice(list(held))
            assert room.release(*key) == held.pop(key)
        else:
            size = chance.randrange(200)
            if room.lease(session_id(step), 1, size):
                held[session_id(step), 1] = size
        assert room.used_bytes == sum(held.values()) <= 1_000
        assert list(room.leases()) == list(held)
        room.check()
