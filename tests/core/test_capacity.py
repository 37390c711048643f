from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pllm.core.capacity import (
    Budget,
    PlacementConfig,
    compute_weights,
    kv_reserve_bytes,
    range_bytes,
    reach_table,
    stable_fraction,
    unroll,
    weight_bytes,
)
from p2pllm.domain.layers import LayerRange
from tests.core.swarm_worlds import model


def test_embedding_and_head_count_to_the_ends() -> None:
    spec = model(4, parameters=10, embedding=100, head=200)
    assert weight_bytes(spec, 2) == (220, 20, 20, 420)
    assert compute_weights(spec) == (10, 10, 10, 210)
    assert range_bytes(weight_bytes(spec, 2), [LayerRange(1, 4)]) == 460


def test_the_reserve_is_one_session_of_bounded_length() -> None:
    spec = model(2, kv_elements=3)
    assert kv_reserve_bytes(spec, 2, PlacementConfig(kv_tokens=100)) == (600, 600)
    assert kv_reserve_bytes(spec, 2, PlacementConfig(kv_tokens=10**6)) == (24_576, 24_576)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(0, 5),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 9),
)
def test_reach_is_the_furthest_window_within_the_budget(
    weights: list[int], reserve: int, memory: int, weights_max: int, layers: int
) -> None:
    ring = len(weights)
    reserves = [reserve] * ring
    table = reach_table(weights, reserves, Budget(memory, weights_max, layers))
    for start, stop in enumerate(table):

        def fits(end: int, start: int = start) -> bool:
            held = [weights[layer % ring] for layer in range(start, end)]
            return (
                len(held) <= min(layers, ring)
                and sum(held) <= weights_max
                and sum(held) + reserve * len(held) <= memory
            )

        assert fits(stop)
        assert not fits(stop + 1)


def test_stable_hashes_do_not_depend_on_the_process() -> None:
    assert stable_fraction("a", "b") == 0.9990435296234165
    assert stable_fraction("a", "bc") != stable_fraction("ab", "c")


def test_ranges_at_both_ends_are_one_window_that_wraps() -> None:
    assert unroll((LayerRange(0, 2), LayerRange(7, 10)), 10) == (7, 12)
    assert unroll((LayerRange(0, 2), LayerRange(4, 9)), 10) == (4, 9)
    assert unroll((), 10) is None
