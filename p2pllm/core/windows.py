"""One model's windows: who holds which layers, given what everybody holds now.

The order of business, each step taking as little as it needs from what the ones before decided:

1. Whoever can hold the whole model does.
2. Holders stay where they are, and hold as much as fits.
3. Joiners (largest first, ties by hash) each take the window with the most need: uncovered layers
   first, then layers with fewer than R copies, then the slowest ones; among equals the one nearest
   to the node's anchor on the ring.
4. If a layer is uncovered, windows are slid together in their order, moving the fewest bytes; if
   that cannot do, layers are dealt out afresh, for up to `EXACT_NODES_MAX` nodes in every order.
5. Search: move one window at a time as long as that raises
   `log(throughput) - move_cost * moved - hop_cost * hops`; start also from a fresh plan. What is
   found is taken only if it covers more, gives more copies, or raises throughput by more than
   `gain_min` over 1-4; a smaller gain is not worth anybody's move.

Windows do not wrap unless coverage needs it: a wrapping one costs its users two hops. Moved bytes
obey the triangle inequality, so a plan that was found best from the old holdings is still best
once it is carried out; the steps repeat until that is so of what they return.

Everything is deterministic in the machines' order by node id; there is no randomness.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log

from p2pllm.core.capacity import PlacementConfig, Window
from p2pllm.core.throughput import hops_min, shortfall, spans_of, throughput
from p2pllm.domain.ids import NodeId

EXACT_NODES_MAX = 12
"""Every order of that many nodes is tried where coverage is hard: 2^12 sets, tens of ms."""

EXACT_WRAPPED_NODES_MAX = 8
"""The same at every rotation of the ring."""

ROUNDS_MAX = 6
STEP_GAIN = 0.01
"""Relative gain of a single step of the search; smaller ones are not worth the search's time."""

DONORS_MAX = 24
"""How many nodes a search step considers moving, beyond `search_nodes_max` nodes."""

CHOICES_MAX = 400
"""Windows of all machines together up to which a sweep of the search tries each."""

PACKING = 0.8
"""Part of the summed room that copies are asked to fill evenly. Asking for more copies than fit
easily would fix every window, at the expense of throughput."""

SLOWEST_EXPONENT = 3
"""How much more a joiner weighs a layer the slower it is; 3 is about as good as any above."""

Windows = list[Window | None]

_Chain = tuple[int, Window, "_Chain | None"]
"""Chosen windows, the last first."""


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


@dataclass(frozen=True, slots=True)
class _Score:
    """How good windows are; see `better_than`."""

    uncovered: int
    lacking: int
    value: float
    rate: float

    def better_than(self, other: _Score, gain: float) -> bool:
        if (self.uncovered, self.lacking) != (other.uncovered, other.lacking):
            return (self.uncovered, self.lacking) < (other.uncovered, other.lacking)
        return self.value > other.value + log(1 + gain)


def choose_windows(
    machines: Sequence[Machine], ring: Ring, config: PlacementConfig
) -> list[Window | None]:
    """A window, or None, for each of `machines`, which come in ascending order of node id."""
    windows = _Search(machines, ring, config).run()
    for _ in range(ROUNDS_MAX):
        if all(
            machine.current == window for machine, window in zip(machines, windows, strict=True)
        ):
            break
        settled = [
            replace(machine, current=window)
            for machine, window in zip(machines, windows, strict=True)
        ]
        again = _Search(settled, ring, config).run()
        if again == windows:
            break
        windows = again
    return windows


class _Search:
    """One round from one set of current windows."""

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

    # -- the steps ---------------------------------------------------------------------------

    def run(self) -> Windows:
        """Steps 1 to 5 of the module's text, and what `replicas_max` takes away again."""
        windows: Windows = [(0, self._layers) if whole else None for whole in self._whole]
        if not self._partial:
            return self._trim_or_keep(windows)
        for index in self._partial:
            windows[index] = self._kept(index)
        joiners = [index for index in self._partial if windows[index] is None]
        self._join(windows, joiners)
        if self._uncovered(windows):
            self._close_gaps(windows)
        windows = self._climb(windows, joiners)
        score = self._score(windows)
        if not score.lacking and score.rate * (1 + self._config.gain_min) >= self._bound():
            return self._trim_or_keep(windows)
        best, best_score = windows, score
        for start in (windows, self._fresh()):
            found = self._climb(list(start), self._partial)
            found_score = self._score(found)
            if found_score.better_than(best_score, 0.0):
                best, best_score = found, found_score
        if (best_score.uncovered, best_score.lacking) < (score.uncovered, score.lacking) or (
            best_score.rate > score.rate * (1 + self._config.gain_min)
        ):
            windows = best
        return self._trim_or_keep(windows)

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

    def _join(self, windows: Windows, joiners: Sequence[int]) -> None:
        """Step 3."""
        if not joiners:
            return
        copies, strength = self._loads(windows)
        order = sorted(
            joiners,
            key=lambda index: (
                -max(stop - start for start, stop in self._choices(index)),
                self._machines[index].rank,
                self._machines[index].node,
            ),
        )
        for index in order:
            window = self._neediest(index, copies, strength, None)
            windows[index] = window
            self._add(index, window, copies, strength, 1)

    def _loads(self, windows: Windows) -> tuple[list[int], list[float]]:
        """Per layer, copies and the speed it gets if nodes spread theirs evenly."""
        copies = [0] * self._layers
        strength = [0.0] * self._layers
        for index, window in enumerate(windows):
            if window is not None:
                self._add(index, window, copies, strength, 1)
        return copies, strength

    def _add(
        self, index: int, window: Window, copies: list[int], strength: list[float], sign: int
    ) -> None:
        start, stop = window
        compute = self._ring.compute
        share = sign * self._rates[index] / (compute[stop] - compute[start])
        for layer in range(start, stop):
            copies[layer % self._layers] += sign
            strength[layer % self._layers] += share

    def _neediest(
        self, index: int, copies: list[int], strength: list[float], within: int | None
    ) -> Window:
        """The window with most need; of those that hold layer `within`, if given."""
        layers, replicas = self._layers, self._replicas
        held = [value for value, count in zip(strength, copies, strict=True) if count > 0]
        slowest = max(min(held, default=1.0), 1e-12)
        need = [0.0]
        running = 0.0
        for count, value in zip(copies, strength, strict=True):
            if count <= 0:
                running += 1e6
            elif count < replicas:
                running += 1e3
            else:
                running += (slowest / max(value, slowest)) ** SLOWEST_EXPONENT
            need.append(running)
        anchor = self._machines[index].anchor
        best: Window | None = None
        best_key: tuple[float, bool, float] | None = None
        for start, stop in self._choices(index):
            if within is not None and not start <= within < stop:
                continue
            gain = round(need[stop] - need[start], 6)
            if best_key is not None and gain < best_key[0]:
                continue
            flush = (
                start == 0
                or stop == layers
                or copies[start - 1] > copies[start]
                or copies[stop] > copies[stop - 1]
            )
            span = layers - (stop - start)
            key = (gain, flush, -abs(start - anchor * span))
            if best_key is None or key > best_key:
                best, best_key = (start, stop), key
        if best is None:
            return self._grown(index, max(range(layers), key=lambda s: self._reach[index][s] - s))
        return best

    def _bound(self) -> float:
        """No windows give more than the highest T with `sum(min(rate, room * T)) >= total * T`."""
        compute = self._ring.compute
        rooms = [
            (
                self._rates[index],
                self._total
                if self._whole[index]
                else max(compute[stop] - compute[start] for start, stop in self._choices(index)),
            )
            for index in range(len(self._machines))
            if self._able[index]
        ]
        low, high = 0.0, sum(rate for rate, _ in rooms) / self._total
        for _ in range(20):
            middle = (low + high) / 2
            if sum(min(rate, room * middle) for rate, room in rooms) >= self._total * middle:
                low = middle
            else:
                high = middle
        return high

    # -- coverage ----------------------------------------------------------------------------

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

    # -- search ------------------------------------------------------------------------------

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

    def _score(self, windows: Windows) -> _Score:
        copies, _ = self._loads(windows)
        uncovered = sum(1 for count in copies if count == 0)
        lacking = sum(max(0, self._replicas - count) for count in copies)
        rate = 0.0
        if not uncovered:
            spans = spans_of(windows, self._ring.compute, self._layers)
            rate = throughput(spans, self._rates, self._total)
        return _Score(uncovered, lacking, self._value(windows, rate), rate)

    def _value(self, windows: Windows, rate: float) -> float:
        return log(rate) - self._penalty(windows) if rate > 0.0 else float("-inf")

    def _penalty(self, windows: Windows) -> float:
        return self._config.move_cost * self._moved_sum(windows) + self._hop_penalty(windows)

    def _moved_sum(self, windows: Windows) -> float:
        return sum(
            self._moved(index, window)
            for index in self._partial
            if (window := windows[index]) is not None
        )

    def _hop_penalty(self, windows: Windows) -> float:
        return self._config.hop_cost * hops_min(windows, self._layers) if self._small else 0.0

    def _climb(self, windows: Windows, movable: Sequence[int]) -> Windows:
        """Step 5: move one of `movable` at a time while that is better."""
        if not movable:
            return windows
        score = self._score(windows)
        for _ in range(4 * len(movable) + 8):
            step = (
                self._sweep(windows, movable, score)
                if self._small
                else self._relieve(windows, movable, score)
            )
            if step is None:
                break
            windows, score = step
        return windows

    def _sweep(
        self, windows: Windows, movable: Sequence[int], score: _Score
    ) -> tuple[Windows, _Score] | None:
        """One pass over all machines, each to its best window; None where nothing is better."""
        improved = False
        for index in movable:
            found = self._best_move(windows, index, score, self._flush(windows, index))
            if found is not None:
                windows, score = found
                improved = True
        return (windows, score) if improved else None

    def _flush(self, windows: Windows, index: int) -> Sequence[Window]:
        """What to try for a machine: all, or of many those flush with others' windows or an end."""
        choices = self._choices(index)
        if len(choices) * len(self._machines) <= CHOICES_MAX:
            return choices
        edges = {0, self._layers}
        for other, window in enumerate(windows):
            if window is not None and other != index:
                edges.update(window)
        return [window for window in choices if window[0] in edges or window[1] in edges]

    def _best_move(
        self, windows: Windows, index: int, score: _Score, choices: Sequence[Window]
    ) -> tuple[Windows, _Score] | None:
        old = windows[index]
        rest = list(windows)
        rest[index] = None
        copies, _ = self._loads(rest)
        empty, lacking = [0], [0]
        for count in copies:
            empty.append(empty[-1] + (count == 0))
            lacking.append(lacking[-1] + (count < self._replicas))
        lacking_sum = sum(max(0, self._replicas - count) for count in copies)
        rest_spans = spans_of(rest, self._ring.compute, self._layers)
        rest_penalty = self._config.move_cost * self._moved_sum(rest)
        best: tuple[Windows, _Score] | None = None
        for window in choices:
            if window == old:
                continue
            start, stop = window
            now_empty = empty[-1] - (empty[stop] - empty[start])
            now_lacking = lacking_sum - (lacking[stop] - lacking[start])
            if (now_empty, now_lacking) > (score.uncovered, score.lacking):
                continue
            penalty = rest_penalty + self._config.move_cost * self._moved(index, window)
            compute = self._ring.compute
            spans = list(rest_spans)
            insort(spans, (compute[start], compute[stop], compute[stop], index))
            same = (now_empty, now_lacking) == (score.uncovered, score.lacking)
            if same and not now_empty:
                # Most candidates fall here, for the price of one sweep; hops come on top.
                needed = exp(score.value + log(1 + STEP_GAIN) + penalty)
                if shortfall(spans, self._rates, self._total, needed) is not None:
                    continue
            trial = list(windows)
            trial[index] = window
            penalty += self._hop_penalty(trial)
            rate = 0.0 if now_empty else throughput(spans, self._rates, self._total)
            value = log(rate) - penalty if rate > 0.0 else -penalty - 1e6
            found = _Score(now_empty, now_lacking, value, rate)
            if found.better_than(score, STEP_GAIN * 0.5):
                best, score = (trial, found), found
        return best

    def _relieve(
        self, windows: Windows, movable: Sequence[int], score: _Score
    ) -> tuple[Windows, _Score] | None:
        """Move the node that is needed least to where throughput falls short first."""
        copies, strength = self._loads(windows)
        if score.uncovered or score.lacking:
            wanting = min(range(self._layers), key=lambda layer: (copies[layer], layer))
        else:
            spans = spans_of(windows, self._ring.compute, self._layers)
            point = shortfall(spans, self._rates, self._total, score.rate * (1 + 4 * STEP_GAIN))
            if point is None:
                return None
            compute = self._ring.compute
            wanting = next(
                (layer for layer in range(self._layers) if compute[layer + 1] > point + 0.5),
                self._layers - 1,
            )
        spare: list[tuple[float, float, int]] = []
        for index in movable:
            window = windows[index]
            if window is None or window[1] > self._layers:
                continue
            start, stop = window
            share = self._rates[index] / (self._ring.compute[stop] - self._ring.compute[start])
            left = min(strength[start:stop]) - share
            if min(copies[start:stop]) > self._replicas or start <= wanting < stop:
                spare.append((-left, self._machines[index].rank, index))
        for _, _, index in sorted(spare)[:DONORS_MAX]:
            old = windows[index]
            assert old is not None
            self._add(index, old, copies, strength, -1)
            target = self._neediest(index, copies, strength, wanting)
            self._add(index, old, copies, strength, 1)
            found = self._best_move(windows, index, score, [target])
            if found is not None:
                return found
        return None

    def _fresh(self) -> Windows:
        """A plan that minds nothing but throughput: shares of the work laid end to end.

        Node i can do `rate / T` of a pass; in the order of the anchors (consistent hashing) each
        gets the layers that start where its predecessor's share ends. The highest T for which the
        shares reach the end is found by bisection.
        """
        order = sorted(
            range(len(self._machines)),
            key=lambda index: (self._machines[index].anchor, self._machines[index].node),
        )
        order = [index for index in order if self._able[index]]
        high = sum(self._rates[index] for index in order) / self._total
        best: dict[int, Window] = {}
        low = 0.0
        target = high / 2
        for _ in range(10):
            laid = self._lay(order, target)
            if laid is not None:
                best, low = laid, target
            else:
                high = target
            target = (low + high) / 2
        windows: Windows = [None] * len(self._machines)
        for index, window in best.items():
            windows[index] = window
        for index, whole in enumerate(self._whole):
            if whole:
                windows[index] = (0, self._layers)
        self._join(windows, [index for index in self._partial if windows[index] is None])
        if self._uncovered(windows):
            self._close_gaps(windows)
        return windows

    def _lay(self, order: Sequence[int], target: float) -> dict[int, Window] | None:
        """Windows under which the shares for `target` reach the end, or None."""
        compute, layers = self._ring.compute, self._layers
        laid: dict[int, Window] = {}
        point, layer = 0.0, 0
        for index in order:
            while layer < layers and compute[layer + 1] <= point + 1e-6:
                layer += 1
            if layer >= layers:
                return laid
            stop = self._reach[index][layer]
            if stop > layer:
                laid[index] = self._grown(index, layer)
                point = min(point + self._rates[index] / target, compute[stop])
        return laid if point >= self._total - 0.5 else None

    # -- an upper bound on copies ---------------------------------------------------------------

    def _trim_or_keep(self, windows: Windows) -> Windows:
        """What remains under `replicas_max`; the current windows where that is no clear gain."""
        copies_max = self._config.replicas_max
        if copies_max is None:
            return windows
        trimmed = self._trim(windows, copies_max)
        current: Windows = [
            machine.current
            if machine.current is not None
            and machine.current[1] <= machine.reach[machine.current[0]]
            else None
            for machine in self._machines
        ]
        if self._trim(current, copies_max) != current:
            return trimmed
        new, old = self._score(trimmed), self._score(current)
        if (new.uncovered, new.lacking) < (old.uncovered, old.lacking):
            return trimmed
        return trimmed if new.rate > old.rate * (1 + self._config.gain_min) else current

    def _trim(self, windows: Windows, copies_max: int) -> Windows:
        """Cut ends off windows, holders of nothing first, while all cut layers have too many."""
        copies, _ = self._loads(windows)
        result = list(windows)
        order = sorted(
            range(len(windows)),
            key=lambda index: (
                self._machines[index].current is not None,
                self._machines[index].rank,
                self._machines[index].node,
            ),
        )
        for index in order:
            window = result[index]
            if window is None:
                continue
            start, stop = window
            while start < stop and copies[start % self._layers] > copies_max:
                copies[start % self._layers] -= 1
                start += 1
            while start < stop and copies[(stop - 1) % self._layers] > copies_max:
                copies[(stop - 1) % self._layers] -= 1
                stop -= 1
            if start >= self._layers:
                start, stop = start - self._layers, stop - self._layers
            result[index] = (start, stop) if start < stop else None
        return result


def _unchain(chain: _Chain | None) -> dict[int, Window]:
    chosen: dict[int, Window] = {}
    while chain is not None:
        index, window, chain = chain
        chosen[index] = window
    return chosen
