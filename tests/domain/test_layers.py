from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.domain.layers import LayerRange, LayerWindow, merge_ranges, ranges_of

RANGES = st.tuples(st.integers(0, 30), st.integers(1, 8)).map(
    lambda pair: LayerRange(pair[0], pair[0] + pair[1])
)


@st.composite
def windows(draw: st.DrawFn) -> LayerWindow:
    ring = draw(st.integers(1, 40))
    return LayerWindow(draw(st.integers(0, ring - 1)), draw(st.integers(1, ring)), ring)


def layers_of(ranges: tuple[LayerRange, ...]) -> list[int]:
    return [layer for item in ranges for layer in range(item.start, item.stop)]


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 3), (4, 3), (-1, 2)])
def test_a_range_is_never_empty_and_never_negative(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="0 <= start < stop"):
        LayerRange(start, stop)


def test_a_range_knows_its_length_and_its_layers() -> None:
    layers = LayerRange(2, 5)
    assert len(layers) == 3
    assert [layer for layer in range(8) if layer in layers] == [2, 3, 4]


def test_a_range_is_shown_with_its_last_layer() -> None:
    assert str(LayerRange(2, 5)) == "2-4"
    assert str(LayerRange(2, 3)) == "2"


@settings(deadline=None)
@given(RANGES, RANGES)
def test_a_range_covers_another_that_has_no_layer_of_its_own(
    one: LayerRange, other: LayerRange
) -> None:
    assert one.covers(other) == (set(layers_of((other,))) <= set(layers_of((one,))))


@pytest.mark.parametrize(
    ("start", "length", "ring"), [(0, 0, 4), (4, 1, 4), (-1, 1, 4), (0, 5, 4), (0, 1, 0)]
)
def test_a_window_lies_on_its_ring(start: int, length: int, ring: int) -> None:
    with pytest.raises(ValueError, match="no such window"):
        LayerWindow(start, length, ring)


def test_a_window_that_ends_with_the_model_is_one_range() -> None:
    assert LayerWindow(4, 4, 8).ranges() == (LayerRange(4, 8),)


def test_a_window_that_wraps_is_two_ranges_in_ascending_order() -> None:
    assert LayerWindow(6, 4, 8).ranges() == (LayerRange(0, 2), LayerRange(6, 8))


def test_a_window_around_the_whole_ring_is_one_range_wherever_it_starts() -> None:
    assert LayerWindow(3, 8, 8).ranges() == (LayerRange(0, 8),)


@settings(deadline=None)
@given(windows())
def test_the_ranges_of_a_window_hold_its_layers_each_once(window: LayerWindow) -> None:
    ranges = window.ranges()
    assert layers_of(ranges) == sorted(window.layers())
    assert len(window.layers()) == window.length
    assert len(ranges) <= 2


@settings(deadline=None)
@given(st.lists(RANGES, max_size=8))
def test_merged_ranges_hold_the_same_layers_in_order_with_gaps_between(
    ranges: list[LayerRange],
) -> None:
    merged = merge_ranges(ranges)
    assert layers_of(merged) == sorted(set(layers_of(tuple(ranges))))
    assert all(one.stop < other.start for one, other in pairwise(merged))


@settings(deadline=None)
@given(st.lists(RANGES, max_size=8), st.randoms(use_true_random=False))
def test_merging_knows_no_order_and_is_done_after_once(
    ranges: list[LayerRange], random: object
) -> None:
    merged = merge_ranges(ranges)
    random.shuffle(ranges)  # type: ignore[attr-defined]
    assert merge_ranges(ranges) == merged == merge_ranges(merged)


@settings(deadline=None)
@given(st.sets(st.integers(0, 30)))
def test_the_ranges_of_some_layers_are_the_fewest(layers: set[int]) -> None:
    ranges = ranges_of(layers)
    assert layers_of(ranges) == sorted(layers)
    assert len(ranges) == sum(layer - 1 not in layers for layer in layers)
