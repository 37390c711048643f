"""How windows are changed where a layer is uncovered: slid together, or dealt out afresh."""

from __future__ import annotations

from collections.abc import Sequence

from p2pllm.core.capacity import Window
from p2pllm.core.layout import Layout, Windows

EXACT_NODES_MAX = 12
"""Every order of that many nodes is tried where coverage is hard: 2^12 sets, tens of ms."""

EXACT_WRAPPED_NODES_MAX = 8
"""The same at every rotation of the ring."""

_Chain = tuple[int, Window, "_Chain | None"]
"""Chosen windows, the last first."""


class Coverage(Layout):
    """Step 4 of `p2pllm.core.windows`."""

    def _uncovered(self, windows: Windows) -> int:
        held: set[int] = set()
        for window in windows:
            if window is not None:
                if window[1] - window[0] >= self._layers:
                    return 0
                held.update(layer % self._layers for layer in range(*window))
        return self._layers - len(held)

    def _close_gaps(self, windows: Windows) -> None:
        """Step 4; leaves `windows` as they are where no way to cover all layers is found."""
        if sum(max(e - s for s, e in self._choices(i)) for i in self._partial) < self._layers:
            return
        chosen = self._slide(windows)
        if chosen is None:
            chosen = self._deal(windows)
        if chosen is None:
            return
        for index, window in chosen.items():
            windows[index] = window

    def _slide(self, windows: Windows) -> dict[int, Window] | None:
        """Windows slid together in their order, moving the fewest bytes (dynamic programme)."""
        layers = self._layers
        order = sorted(
            self._partial,
            key=lambda index: (windows[index] or (0, 0), self._machines[index].rank),
        )
        # Reached layer -> (bytes moved, chain of (index, window, chain)).
        reached: dict[int, tuple[float, _Chain | None]] = {0: (0.0, None)}
        for index in order:
            stay = windows[index]
            table = self._reach[index]
            following: dict[int, tuple[float, _Chain | None]] = {}

            def offer(
                position: int,
                cost: float,
                chain: _Chain | None,
                into: dict[int, tuple[float, _Chain | None]] = following,
            ) -> None:
                if position not in into or cost < into[position][0]:
                    into[position] = (cost, chain)

            for position, (cost, chain) in sorted(reached.items()):
                kept = position
                if stay is not None and stay[0] <= position:
                    kept = max(position, min(stay[1], layers))
                offer(kept, cost, chain)
                if position >= layers:
                    continue
                starts = [position]
                if self._small:
                    starts = [s for s in range(position + 1) if table[s] > position]
                elif table[position] >= layers:
                    starts.append(self._grown(index, position)[0])
                for start in starts:
                    stop = table[start]
                    if stop > position:
                        window = self._grown(index, start)
                        moved = self._moved(index, window)
                        offer(stop, cost + moved, (index, window, chain))
            reached = following
        if layers not in reached:
            return None
        return _unchain(reached[layers][1])

    def _deal(self, windows: Windows) -> dict[int, Window] | None:
        """Layers dealt out one after another, in several orders, or all where that is feasible."""
        machines = self._machines
        partial = self._partial
        orders = [
            sorted(partial, key=lambda i: (windows[i] or (0, 0), machines[i].rank)),
            sorted(partial, key=lambda i: (machines[i].anchor, machines[i].node)),
            sorted(partial, key=lambda i: (-sum(self._reach[i]), machines[i].rank)),
            sorted(partial, key=lambda i: (sum(self._reach[i]), machines[i].rank)),
        ]
        for cut in range(self._layers):
            for order in orders:
                dealt = self._deal_in(order, cut)
                if dealt is not None:
                    return dealt
            exact_max = EXACT_NODES_MAX if cut == 0 else EXACT_WRAPPED_NODES_MAX
            if len(partial) <= exact_max:
                dealt = self._deal_exactly(cut)
                if dealt is not None:
                    return dealt
        return None

    def _reach_from(self, index: int, position: int) -> int:
        """How far a window from the unrolled `position` on reaches, unrolled."""
        layers = self._layers
        turn, start = divmod(position, layers)
        return self._machines[index].reach[start] + turn * layers

    def _deal_in(self, order: Sequence[int], cut: int) -> dict[int, Window] | None:
        """From layer `cut` on around the ring, in this order."""
        position, end = cut, cut + self._layers
        dealt: dict[int, Window] = {}
        for index in order:
            stop = self._reach_from(index, position)
            if stop <= position:
                continue
            dealt[index] = self._rolled(index, position, stop, end)
            position = stop
            if position >= end:
                return dealt
        return None

    def _rolled(self, index: int, position: int, stop: int, end: int) -> Window:
        """A dealt window within one turn; one that overshoots is grown back from the end."""
        layers = self._layers
        if end == layers:
            return self._grown(index, position)
        stop = min(stop, end)
        start = position % layers
        return (start, start + stop - position)

    def _deal_exactly(self, cut: int) -> dict[int, Window] | None:
        """The furthest that each set of nodes reaches from `cut` on, for all sets."""
        partial = self._partial
        end = cut + self._layers
        furthest = [cut] * (1 << len(partial))
        last = [-1] * len(furthest)
        for members in range(1, len(furthest)):
            best, chosen = -1, -1
            rest = members
            while rest:
                bit = rest & -rest
                rest ^= bit
                number = bit.bit_length() - 1
                stop = self._reach_from(partial[number], furthest[members ^ bit])
                if stop > best:
                    best, chosen = stop, number
            furthest[members], last[members] = min(best, end), chosen
            if best >= end:
                dealt: dict[int, Window] = {}
                while members:
                    number = last[members]
                    before = members ^ (1 << number)
                    position = furthest[before]
                    stop = self._reach_from(partial[number], position)
                    if stop > position:
                        dealt[partial[number]] = self._rolled(partial[number], position, stop, end)
                    members = before
                return dealt
        return None


def _unchain(chain: _Chain | None) -> dict[int, Window]:
    chosen: dict[int, Window] = {}
    while chain is not None:
        index, window, chain = chain
        chosen[index] = window
    return chosen
