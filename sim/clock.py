"""Virtual time: a heap of things to do, equal times in the order they were put in."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Clock(Generic[T]):
    """What is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._heap: list[tuple[float, int, T]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, at: float, item: T) -> None:
        """Let `item` happen at `at`, or now where that is past."""
        self._count += 1
        heapq.heappush(self._heap, (max(at, self.now), self._count, item))

    def pop(self, until: float) -> T | None:
        """The next thing that happens by `until`, and time moves there; else to `until`."""
        if not self._heap or self._heap[0][0] > until:
            self.now = max(self.now, until)
            return None
        self.now, _, item = heapq.heappop(self._heap)
        return item
