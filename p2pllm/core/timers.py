"""Named points in time of one machine.

A heap with lazy deletion: `set` and `cancel` leave stale entries behind, which are dropped when
they come to the top, or all at once when they outnumber the live ones. Equal times fall due in the
order in which they were set, so a run replays exactly.
"""

from __future__ import annotations

import heapq

TimerKey = tuple[str, str]
"""What for, and for whom."""

_STALE_MAX = 64


class Timers:
    """When to do what next."""

    def __init__(self) -> None:
        self._live: dict[TimerKey, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, TimerKey]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: TimerKey) -> bool:
        return key in self._live

    def set(self, key: TimerKey, at: float) -> None:
        """Let `key` fall due at `at`, and at no other time."""
        self._count += 1
        self._live[key] = (at, self._count)
        heapq.heappush(self._heap, (at, self._count, key))
        self._compact()

    def cancel(self, key: TimerKey) -> None:
        """Let `key` not fall due; nothing happens where it is not set."""
        if self._live.pop(key, None) is not None:
            self._compact()

    def deadline(self) -> float | None:
        """When the next one falls due."""
        heap = self._heap
        while heap:
            at, count, key = heap[0]
            entry = self._live.get(key)
            if entry is not None and entry[1] == count:
                return at
            heapq.heappop(heap)
        return None

    def pop(self, now: float) -> TimerKey | None:
        """The next one that is due, which is then unset; None where none is."""
        deadline = self.deadline()
        if deadline is None or deadline > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._live[key]
        self._compact()
        return key

    def check(self) -> None:
        """Assert that every live timer is in the heap, and that the heap is bounded."""
        assert len(self._heap) <= 2 * len(self._live) + _STALE_MAX
        entries = {(count, key) for _, count, key in self._heap}
        assert all((count, key) in entries for key, (_, count) in self._live.items())

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._live) + _STALE_MAX:
            self._heap = [(at, count, key) for key, (at, count) in self._live.items()]
            heapq.heapify(self._heap)
