from __future__ import annotations

from random import Random

import pytest

from p2pllm.core.capacity import Window
from p2pllm.core.filling import Hand, fill, fill_best, unused
from p2pllm.core.throughput import shortfall, spans_of

LAYERS = 24
COMPUTE = tuple(range(LAYERS + 1))


def hand(index: int, room: int, held: Window | None = None) -> Hand:
    def window(layer: int) -> Window | None:
        return (min(layer, LAYERS - room), min(layer + room, LAYERS))

    return Hand(index, room, float(index), window, held)


def test_machines_are_laid_end_to_end() -> None:
    pool = [hand(index, 8) for index in range(3)]
    assert fill([], [8.0] * 3, COMPUTE, LAYERS, 1.0, pool) == {0: (0, 8), 1: (8, 16), 2: (16, 24)}
    assert fill([], [8.0] * 3, COMPUTE, LAYERS, 1.1, pool) is None


def test_only_what_the_fixed_windows_cannot_do_is_laid() -> None:
    fixed = spans_of([(0, 10), (15, 24)], COMPUTE, LAYERS)
    rates = [10.0, 9.0, 5.0, 5.0]
    placed = fill(fixed, rates, COMPUTE, LAYERS, 1.0, [hand(2, 5), hand(3, 5)])
    assert placed == {2: (10, 15)}


def test_one_that_memory_bounds_starts_where_nothing_is_done_yet() -> None:
    """Laid after the 12.1 layers of the loose one it could not do all of its own twelve."""
    pool = [hand(0, 13), hand(1, 12)]
    assert fill([], [12.0, 99.0], COMPUTE, LAYERS, 0.99, pool) == {1: (0, 12), 0: (11, 24)}


def test_a_thrifty_filling_leaves_machines_where_they_are() -> None:
    """Freely laid, the two would change places."""
    pool = [hand(0, 12, (12, 24)), hand(1, 12, (0, 12))]
    rates = [12.0, 12.0]
    assert fill([], rates, COMPUTE, LAYERS, 1.0, pool) == {0: (0, 12), 1: (12, 24)}
    assert fill([], rates, COMPUTE, LAYERS, 1.0, pool, thrift=0.5) == {1: (0, 12), 0: (12, 24)}


@pytest.mark.parametrize("seed", range(10))
def test_what_is_laid_delivers_what_was_asked_for(seed: int) -> None:
    random = Random(seed)
    count = random.randint(4, 14)
    rooms = [random.randint(3, 12) for _ in range(count)]
    rates = [random.uniform(1, 16) for _ in range(count)]
    pool = [hand(index, room) for index, room in enumerate(rooms)]
    high = sum(rates) / LAYERS
    target, placed = fill_best([], rates, COMPUTE, LAYERS, pool, high)
    if sum(rooms) >= LAYERS + 12:
        assert target > 0.0
    if target > 0.0:
        spans = spans_of([placed.get(index) for index in range(count)], COMPUTE, LAYERS)
        assert shortfall(spans, rates, LAYERS, target) is None


def test_speed_beyond_what_is_asked_for_is_unused() -> None:
    spans = spans_of([(0, 12), (12, 24)], COMPUTE, LAYERS)
    assert unused(spans, [24.0, 12.0], LAYERS, 1.0) == pytest.approx({0: 0.5, 1: 0.0})
    apart = spans_of([(0, 8), (16, 24)], COMPUTE, LAYERS)
    assert unused(apart, [8.0, 16.0], LAYERS, 1.0) == pytest.approx({0: 0.0, 1: 0.5})
