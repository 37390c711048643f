"""What windows the machines of one model can have: the ground that planning stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pllm.core.capacity import PlacementConfig, Window
from p2pllm.domain.ids import NodeId

PACKING = 0.8
"""Part of the summed room that copies are asked to fill evenly. Asking for more copies than fit
easily would fix every window, at the expense of throughput."""

Windows = list[Window | None]
"""One per machine, in the order of the machines."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node as the search sees it.

    Attributes:
        node: its id.
        rate: weight elements per second.
        reach: furthest unrolled stop per start; see `capacity.reach_table`.
        current: the window it holds now, unrolled, or None.
        anchor: its place on the ring, in [0, 1).
        rank: breaks ties.
    """

    node: NodeId
    rate: float
    reach: tuple[int, ...]
    current: Window | None
    anchor: float
    rank: float


@dataclass(frozen=True, slots=True)
class Ring:
    """The layers, and what passes over and moves of them cost.

    Attributes:
        layers: how many.
        compute: running sums of weight elements a pass streams, over two turns.
        weights: running sums of weight elements that loading moves, over two turns.
    """

    layers: int
    compute: tuple[int, ...]
    weights: tuple[int, ...]


class Layout:
    """The machines, the layers, and which windows are possible."""

    def __init__(self, machines: Sequence[Machine], ring: Ring, config: PlacementConfig) -> None:
        self._machines = machines
        self._ring = ring
        self._layers = ring.layers
        self._config = config
        self._total = ring.compute[ring.layers]
        self._rates = [machine.rate for machine in machines]
        self._small = len(machines) <= config.search_nodes_max
        layers = self._layers
        self._reach = [[min(stop, layers) for stop in machine.reach] for machine in machines]
        self._whole = [machine.reach[0] >= layers for machine in machines]
        self._able = [
            any(stop > start for start, stop in enumerate(table)) for table in self._reach
        ]
        self._partial = [
            index for index in range(len(machines)) if self._able[index] and not self._whole[index]
        ]
        self._candidates: dict[int, list[Window]] = {}
        room = sum(max(stop - start for start, stop in enumerate(table)) for table in self._reach)
        feasible = int(room * PACKING / layers)
        self._replicas = max(
            1, min(config.replicas, config.replicas_max or config.replicas, feasible)
        )
        compute = ring.compute
        self._rooms = [
            max((compute[stop] - compute[start] for start, stop in enumerate(table)), default=0)
            for table in self._reach
        ]

    def _kept(self, index: int) -> Window | None:
        """What the holder at `index` keeps of its current window, grown to what fits."""
        current = self._machines[index].current
        if current is None:
            return None
        start, stop = current
        table = self._reach[index]
        if stop > self._layers:
            stop = self._machines[index].reach[start]
            return (start, stop) if stop > self._layers else self._grown(index, start)
        if table[start] >= stop:
            return self._grown(index, start)
        # It does not fit any more. Which side others need less is for the search to find out.
        return self._grown(index, start) if table[start] > start else None

    def _grown(self, index: int, start: int) -> Window:
        """The largest window from `start` on, and further to the left where that is free."""
        table = self._reach[index]
        stop = table[start]
        while start > 0 and table[start - 1] >= stop:
            start -= 1
        return (start, stop)

    def _choices(self, index: int) -> list[Window]:
        """All windows that cannot grow on either side."""
        found = self._candidates.get(index)
        if found is None:
            found = []
            reached = 0
            for start, stop in enumerate(self._reach[index]):
                if stop > start and stop > reached:
                    found.append((start, stop))
                    reached = stop
            self._candidates[index] = found
        return found

    def _moved(self, index: int, window: Window) -> float:
        """Share of the model's bytes that `index` would load; a joiner must load in any case."""
        current = self._machines[index].current
        if current is None:
            return 0.0
        layers, weights = self._layers, self._ring.weights
        start, stop = window
        moved = weights[stop] - weights[start]
        for shift in (-layers, 0, layers):
            low, high = max(start, current[0] + shift), min(stop, current[1] + shift)
            if low < high:
                moved -= weights[high] - weights[low]
        return moved / weights[layers]
