from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core.capacity import prefix_sums
from p2pllm.core.throughput import hops_min, spans_of, throughput


def minimum_cut(windows: list[tuple[int, int]], rates: list[float], sizes: list[int]) -> float:
    """The throughput by brute force: no set of layers may ask more of its holders than they do.

    Node i gives the set S at most min(rate_i, T * size of what it holds of S).
    """
    layers = range(len(sizes))

    def feasible(target: float) -> bool:
        for count in range(1, len(sizes) + 1):
            for group in combinations(layers, count):
                given_ = sum(
                    min(rate, target * sum(sizes[x] for x in group if start <= x < stop))
                    for (start, stop), rate in zip(windows, rates, strict=True)
                )
                if given_ < target * sum(sizes[x] for x in group) * (1 - 1e-9):
                    return False
        return True

    low, high = 0.0, sum(rates)
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if feasible(middle) else (low, middle)
    return low


@st.composite
def placements(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[float], list[int]]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    windows = []
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(sizes) - 1))
        windows.append((start, draw(st.integers(start + 1, len(sizes)))))
    rates = [draw(st.sampled_from([1.0, 3.0, 10.0])) for _ in windows]
    return windows, rates, sizes


@given(placements())
@settings(max_examples=80, deadline=None)
def test_throughput_is_the_minimum_cut(
    case: tuple[list[tuple[int, int]], list[float], list[int]],
) -> None:
    windows, rates, sizes = case
    prefix = prefix_sums(sizes)
    found = throughput(spans_of(windows, prefix, len(sizes)), rates, sum(sizes))
    assert found == pytest.approx(minimum_cut(windows, rates, sizes), rel=0.006, abs=1e-6)


def test_a_wrapping_window_serves_both_ends_with_one_speed() -> None:
    prefix = prefix_sums([1] * 4)
    spans = spans_of([(3, 5), (1, 3)], prefix, 4)
    assert throughput(spans, [2.0, 2.0], 4) == pytest.approx(1.0, rel=0.005)


def test_an_uncovered_layer_means_none() -> None:
    prefix = prefix_sums([1] * 4)
    assert throughput(spans_of([(0, 2), None, (3, 4)], prefix, 4), [1.0] * 3, 4) == 0.0


def test_hops_are_the_fewest_windows_that_join_up() -> None:
    assert hops_min([(0, 2), (1, 4), (2, 3), (3, 6)], 6) == 3
    assert hops_min([(0, 6), (1, 4)], 6) == 1
    assert hops_min([(4, 8), (2, 4)], 6) == 3
    assert hops_min([(0, 2), (3, 6)], 6) == 0
