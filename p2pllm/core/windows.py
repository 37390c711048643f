"""One model's windows: who holds which layers, given what everybody holds now.

The order of business, each step taking as little as it needs from what the ones before decided:

1. Whoever can hold the whole model does.
2. Holders stay where they are, and hold as much as fits.
3. Joiners are laid where throughput falls short; or (largest first, ties by hash) each takes the
   window with the most need: uncovered layers first, then layers with fewer than R copies, then
   the slowest ones; among equals the one nearest to the node's anchor on the ring. The better of
   the two counts.
4. If a layer is uncovered, windows are slid together in their order, moving the fewest bytes; if
   that cannot do, layers are dealt out afresh, for up to `EXACT_NODES_MAX` nodes in every order.
5. Search for more of `log(throughput) - move_cost * moved - hop_cost * hops`: take the machines
   out that are of least use where they are, lay them where throughput falls short
   (`p2pllm.core.filling`), and send those back whose move is not worth its bytes; in small swarms
   move also one window at a time, and try plans from nothing. What is found is taken only if it
   covers more, gives more copies, or raises throughput by more than `gain_min` over 1-4 (a smaller
   gain is not worth anybody's move), and if full machines do not have to wait for each other's
   drops for ever (`p2pllm.core.transitions`).

A plan from nothing is the best of three: all machines laid as `fill` does; the largest machines
end to end, so that a path has few hops, and the others as `fill` does; and the same with those that
memory bounds packed end to end within the tiles first.

Windows do not wrap unless coverage needs it: a wrapping one costs its users two hops. Moved bytes
obey the triangle inequality, so a plan that was found best from the old holdings is still best
once it is carried out; the steps repeat until that is so of what they return.

Everything is deterministic in the machines' order by node id; there is no randomness.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log, sqrt

from p2pllm.core.capacity import PlacementConfig, Window
from p2pllm.core.coverage import Coverage
from p2pllm.core.filling import Hand, fill, fill_best, unused
from p2pllm.core.layout import Machine, Ring, Windows
from p2pllm.core.throughput import hops_min, shortfall, spans_of, throughput
from p2pllm.core.transitions import can_be_carried_out

ROUNDS_MAX = 6
STEP_GAIN = 0.01
"""Relative gain of a single step of the search; smaller ones are not worth the search's time."""

DONORS_MAX = 24
"""How many nodes a search step considers moving, beyond `search_nodes_max` nodes."""

CHOICES_MAX = 400
"""Windows of all machines together up to which a sweep of the search tries each."""

SLOWEST_EXPONENT = 3
"""How much more a joiner weighs a layer the slower it is; 3 is about as good as any above."""


RUIN_SIZES = (1, 2, 3, 4, 6, 8, 12)
"""How many machines are taken out and laid anew at a time."""

RUIN_SIZES_MANY = (2, 5, 12, 24)
"""The same beyond `search_nodes_max` nodes, where each trial costs more."""

RUIN_ROUNDS = 3
TILE_STEPS = 9
"""Throughputs tried for a fresh plan with few hops; leaves about 1 %."""

THRIFT = 0.5
"""What moving a layer counts in a repair, beside a layer's worth of speed wasted."""

THRIFT_PART = 0.96
"""Part of the best throughput of a repair that its thrifty variant asks for."""

SWEEPS_MAX = 4
GAIN_NODES = 8
"""Up to as many nodes `gain_min` counts in full. A bottleneck of many nodes sees the mean of their
errors of measurement, so beyond, it falls with the root of their number, down to"""

GAIN_PART_MIN = 0.4
"""this part."""


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


NOTHING = _Score(2**31, 2**31, float("-inf"), 0.0)


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


class _Search(Coverage):
    """One round from one set of current windows."""

    def __init__(self, machines: Sequence[Machine], ring: Ring, config: PlacementConfig) -> None:
        super().__init__(machines, ring, config)
        self._homes = [self._kept(index) for index in range(len(machines))]
        self._gain = config.gain_min * min(
            1.0, max(GAIN_PART_MIN, sqrt(GAIN_NODES / len(machines)))
        )
        self._bound = self._bound_of()
        self._gaps = True

    # -- the steps ---------------------------------------------------------------------------

    def run(self) -> Windows:
        """Steps 1 to 5 of the module's text, and what `replicas_max` takes away again."""
        windows: Windows = [(0, self._layers) if whole else None for whole in self._whole]
        if not self._partial:
            return self._trim_or_keep(windows)
        for index in self._partial:
            windows[index] = self._kept(index)
        joiners = [index for index in self._partial if windows[index] is None]
        windows, score = self._joined(windows, joiners)
        self._gaps = score.uncovered > 0
        if not score.lacking and score.rate * (1 + self._gain) >= self._bound:
            return self._trim_or_keep(windows)
        best, best_score = self._improve(windows, score)
        if len(joiners) == len(self._partial):
            return self._trim_or_keep(best)  # Nobody holds anything that could move.
        if self._small or score.rate < self._bound / 2:
            fresh, fresh_score = self._fresh()
            if fresh_score.better_than(best_score, 0.0) and self._can_be_carried_out(fresh):
                best, best_score = fresh, fresh_score
        if (best_score.uncovered, best_score.lacking) < (score.uncovered, score.lacking) or (
            best_score.rate > score.rate * (1 + self._gain)
        ):
            windows = best
        return self._trim_or_keep(windows)

    def _can_be_carried_out(self, windows: Windows) -> bool:
        """Whether full machines get to `windows` without waiting for each other for ever.

        Where layers are uncovered, getting closer to coverage is worth trying in any case.
        """
        if self._gaps:
            return True
        weights, layers = self._ring.weights, self._layers
        sizes = [weights[layer + 1] - weights[layer] for layer in range(layers)]
        rooms = [
            max(weights[stop] - weights[start] for start, stop in enumerate(table))
            for table in self._reach
        ]
        held = [machine.current for machine in self._machines]
        return can_be_carried_out(held, windows, rooms, sizes, self._config.replicas)

    def _joined(self, windows: Windows, joiners: Sequence[int]) -> tuple[Windows, _Score]:
        """Steps 3 and 4: the best of several ways to place the joiners around the holders."""
        if not joiners:
            return self._closed(windows)
        starts = [list(windows)]
        self._join(starts[0], joiners)
        starts += self._poured(windows, joiners)
        if len(joiners) == len(self._partial):
            starts += self._tiled()
        found = [(start, self._score(start)) for start in starts]
        best, best_score = found[0]
        for start, score in found[1:]:
            if score.better_than(best_score, 0.0):
                best, best_score = start, score
        best, best_score = self._closed(best, best_score)
        return self._climb(best, best_score, joiners)

    def _closed(self, windows: Windows, score: _Score | None = None) -> tuple[Windows, _Score]:
        """Step 4."""
        if self._uncovered(windows):
            windows = list(windows)
            self._close_gaps(windows)
            score = None
        return windows, score if score is not None else self._score(windows)

    def _improve(self, windows: Windows, score: _Score) -> tuple[Windows, _Score]:
        """Step 5."""
        windows, score = self._recreate(windows, score)
        if self._small:
            windows, score = self._climb(windows, score, self._partial)
        return windows, score

    # -- filling ----------------------------------------------------------------------------------

    def _hand(self, index: int) -> Hand:
        def window(layer: int) -> Window | None:
            return self._grown(index, layer) if self._reach[index][layer] > layer else None

        return Hand(
            index, self._rooms[index], self._machines[index].rank, window, self._homes[index]
        )

    def _homed(self, windows: Windows, score: _Score) -> tuple[Windows, _Score]:
        """Send back everybody whose move is not worth its bytes."""
        for index in sorted(
            self._partial,
            key=lambda i: (-self._moved(i, w) if (w := windows[i]) is not None else 0.0, i),
        ):
            home = self._homes[index]
            if home is None or windows[index] == home:
                continue
            trial = list(windows)
            trial[index] = home
            trial_score = self._score_above(trial, score)
            if trial_score is not None:
                windows, score = trial, trial_score
        return windows, score

    def _poured(self, windows: Windows, pool: Sequence[int]) -> list[Windows]:
        """`windows` with those of `pool` laid where they are needed; freely, and thriftily.

        Those that are not needed stay where they are, or join.
        """
        freed = set(pool)
        fixed: Windows = [
            None if index in freed else window for index, window in enumerate(windows)
        ]
        compute = self._ring.compute
        spans = spans_of(fixed, compute, self._layers)
        hands = [self._hand(index) for index in pool]
        rate, placed = fill_best(spans, self._rates, compute, self._layers, hands, self._bound)
        made: list[Windows] = []
        if rate > 0.0:
            made.append(self._with(windows, placed, pool))
        if rate > 0.0 and any(self._homes[index] for index in pool):
            thrifty = fill(
                spans, self._rates, compute, self._layers, rate * THRIFT_PART, hands, THRIFT
            )
            if thrifty is not None:
                made.append(self._with(windows, thrifty, pool))
        return made

    def _with(self, windows: Windows, placed: dict[int, Window], pool: Sequence[int]) -> Windows:
        result = list(windows)
        for index, window in placed.items():
            result[index] = window
        self._join(result, [index for index in pool if result[index] is None])
        return result

    def _tiled(self) -> list[Windows]:
        """Plans from nothing: with the fewest hops, and with the most throughput."""
        blank: Windows = [(0, self._layers) if whole else None for whole in self._whole]
        machines = self._machines
        order = sorted(
            self._partial, key=lambda i: (-self._rooms[i], machines[i].anchor, machines[i].node)
        )
        made = self._poured(blank, order)
        tiles = self._tiles(blank, order)
        made += self._poured(tiles, [index for index in order if tiles[index] is None])
        target, low, high = self._bound, 0.0, self._bound
        best: Windows | None = None
        for _ in range(TILE_STEPS):
            found = self._tiled_for(blank, order, target)
            if found is not None:
                best, low = found, target
                if target >= high:
                    break
            else:
                high = target
            target = (low * high) ** 0.5 if low > 0.0 else high * 0.95
        return [*made, best] if best is not None else made

    def _tiles(self, blank: Windows, order: Sequence[int]) -> Windows:
        """The largest machines end to end, as many as reach the last layer."""
        windows = list(blank)
        position = 0
        for index in order:
            if position >= self._layers:
                break
            if self._reach[index][position] > position:
                window = self._grown(index, position)
                windows[index] = window
                position = window[1]
        return windows

    def _tiled_for(self, blank: Windows, order: Sequence[int], target: float) -> Windows | None:
        """The largest machines laid end to end, so that a path has few hops; the others between.

        What a tile cannot do alone is done by others: first those that memory bounds, end to end
        from the tile's start on, since they waste speed unless they start where nothing is done.
        """
        compute, layers = self._ring.compute, self._layers
        windows = self._tiles(blank, order)
        tiles = [(index, window) for index in order if (window := windows[index]) is not None]
        bound = [
            index
            for index in order
            if windows[index] is None and self._rates[index] >= target * self._rooms[index]
        ]
        for tile, (start, stop) in tiles:
            lacking = compute[stop] - compute[start] - self._rates[tile] / target
            for index in list(bound):
                reach = self._reach[index][start]
                size = compute[reach] - compute[start]
                if start < reach <= stop and size <= lacking + 1e-6:
                    windows[index] = (start, reach)
                    start, lacking = reach, lacking - size
                    bound.remove(index)
        rest = [index for index in order if windows[index] is None]
        placed = fill(
            spans_of(windows, compute, layers),
            self._rates,
            compute,
            layers,
            target,
            [self._hand(index) for index in rest],
        )
        return None if placed is None else self._with(windows, placed, rest)

    def _fresh(self) -> tuple[Windows, _Score]:
        """A plan that minds nothing that is held, but pays for what it moves."""
        return self._best(self._tiled())

    def _best(self, starts: Sequence[Windows]) -> tuple[Windows, _Score]:
        best: tuple[Windows, _Score] | None = None
        for start in starts:
            score = self._score(start)
            if best is None or score.better_than(best[1], 0.0):
                best = (start, score)
        return best if best is not None else ([None] * len(self._machines), NOTHING)

    def _recreate(self, windows: Windows, score: _Score) -> tuple[Windows, _Score]:
        """Take out the machines that are of least use where they are, and lay them anew.

        Large neighbourhood search (Shaw 1998; "ruin and recreate", Schrimpf 2000): ever more of
        them, as long as that is better.
        """
        partial = self._partial
        sizes = [
            size for size in (RUIN_SIZES if self._small else RUIN_SIZES_MANY) if size < len(partial)
        ]
        for _ in range(RUIN_ROUNDS):
            goal = min(self._bound, score.rate * 1.3) if score.rate > 0.0 else self._bound
            spans = spans_of(windows, self._ring.compute, self._layers)
            left = unused(spans, self._rates, self._total, goal)
            point = shortfall(spans, self._rates, self._total, goal)
            order = sorted(
                partial,
                key=lambda index: (
                    -round(left.get(index, 0.0) * self._rates[index] / self._rooms[index], 9),
                    self._machines[index].rank,
                    self._machines[index].node,
                ),
            )
            near = [] if point is None else self._holders(windows, point)
            found, found_score = windows, score
            for size in sizes:
                chosen = set(order[:size])
                pools = [[*order[:size], *(i for i in near if i not in chosen)]]
                if self._small and near:
                    pools.append(order[:size])
                for pool in pools:
                    for trial in self._poured(windows, pool):
                        trial_score = self._score_above(trial, found_score)
                        if trial_score is not None and self._can_be_carried_out(trial):
                            found, found_score = trial, trial_score
            if not found_score.better_than(score, STEP_GAIN):
                break
            homed = self._homed(found, found_score)
            windows, score = homed if self._can_be_carried_out(homed[0]) else (found, found_score)
        return windows, score

    def _holders(self, windows: Windows, point: float) -> list[int]:
        """Those whose window holds `point`."""
        compute = self._ring.compute
        return [
            index
            for index in self._partial
            if (window := windows[index]) is not None
            and compute[window[0]] <= point <= compute[window[1]]
        ]

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

    def _bound_of(self) -> float:
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

    # -- search ------------------------------------------------------------------------------

    def _score(self, windows: Windows) -> _Score:
        copies, _ = self._loads(windows)
        uncovered = sum(1 for count in copies if count == 0)
        lacking = sum(max(0, self._replicas - count) for count in copies)
        rate = 0.0
        if not uncovered:
            spans = spans_of(windows, self._ring.compute, self._layers)
            rate = throughput(spans, self._rates, self._total)
        return _Score(uncovered, lacking, self._value(windows, rate), rate)

    def _score_above(self, windows: Windows, least: _Score) -> _Score | None:
        """The score where it is better than `least`; mostly for the price of one sweep."""
        copies, _ = self._loads(windows)
        uncovered = sum(1 for count in copies if count == 0)
        lacking = sum(max(0, self._replicas - count) for count in copies)
        if (uncovered, lacking) > (least.uncovered, least.lacking):
            return None
        if not uncovered and (uncovered, lacking) == (least.uncovered, least.lacking):
            needed = exp(least.value + self._penalty(windows))
            spans = spans_of(windows, self._ring.compute, self._layers)
            if shortfall(spans, self._rates, self._total, needed) is not None:
                return None
        score = self._score(windows)
        return score if score.better_than(least, 0.0) else None

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
        return self._config.hop_cost * hops_min(windows, self._layers)

    def _climb(
        self, windows: Windows, score: _Score, movable: Sequence[int]
    ) -> tuple[Windows, _Score]:
        """Move one of `movable` at a time while that is better."""
        for _ in range(SWEEPS_MAX if self._small else len(movable)):
            step = (
                self._sweep(windows, movable, score)
                if self._small
                else self._relieve(windows, movable, score)
            )
            if step is None or not self._can_be_carried_out(step[0]):
                break
            windows, score = step
        return windows, score

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
            value = log(rate) - penalty if rate > 0.0 else float("-inf")
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
