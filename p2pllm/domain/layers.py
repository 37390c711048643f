"""Layers of a model: half-open ranges, and windows that may wrap around the end.

A *range* never wraps: it is what a stage computes in one hop. A *window* is what placement gives a
node: a start and a length on the ring of a model's layers, so it falls into one range or, where it
wraps, two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from p2pllm.domain.bounds import Bounds

LAYER_INDEX_MAX = 65_535
"""What a range on the wire may name; how many layers a model has is checked with the model."""


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Layers `start` to `stop - 1`; never empty.

    Raises:
        ValueError: where `0 <= start < stop` does not hold.
    """

    start: Annotated[int, Bounds(0, LAYER_INDEX_MAX)]
    stop: Annotated[int, Bounds(0, LAYER_INDEX_MAX)]

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"a layer range needs 0 <= start < stop, not {self.start}..{self.stop}"
            )

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"{self.start}-{self.stop - 1}" if len(self) > 1 else str(self.start)

    def covers(self, other: LayerRange) -> bool:
        """Whether every layer of `other` is in this range."""
        return self.start <= other.start and other.stop <= self.stop


@dataclass(frozen=True, slots=True, order=True)
class LayerWindow:
    """`length` layers from `start` on, wrapping at `ring` (the number of layers of the model).

    Raises:
        ValueError: where `0 <= start < ring` and `1 <= length <= ring` do not hold.
    """

    start: int
    length: int
    ring: int

    def __post_init__(self) -> None:
        if not (0 <= self.start < self.ring and 1 <= self.length <= self.ring):
            raise ValueError(f"no such window: {self.length} from {self.start} of {self.ring}")

    def ranges(self) -> tuple[LayerRange, ...]:
        """One range, or two where the window wraps; in ascending order, disjoint."""
        stop = self.start + self.length
        if stop <= self.ring:
            return (LayerRange(self.start, stop),)
        return merge_ranges((LayerRange(0, stop - self.ring), LayerRange(self.start, self.ring)))

    def layers(self) -> frozenset[int]:
        """The layers in the window."""
        return frozenset((self.start + offset) % self.ring for offset in range(self.length))


def merge_ranges(ranges: Iterable[LayerRange]) -> tuple[LayerRange, ...]:
    """The same layers in ascending order, with ranges that touch or overlap made one."""
    merged: list[LayerRange] = []
    for item in sorted(ranges):
        if merged and item.start <= merged[-1].stop:
            merged[-1] = LayerRange(merged[-1].start, max(merged[-1].stop, item.stop))
        else:
            merged.append(item)
    return tuple(merged)


def ranges_of(layers: Iterable[int]) -> tuple[LayerRange, ...]:
    """The fewest ranges that hold just these layers."""
    return merge_ranges(LayerRange(layer, layer + 1) for layer in layers)
