"""Windows laid where throughput falls short: the construction behind fresh plans and repairs.

Suppose T passes per second are wanted and some windows are fixed. The sweep of
`p2pllm.core.throughput` walks along the layers and stops at the first point that the fixed windows
cannot serve T times per second. There, and not before, another machine is needed: one of the pool
is given the window that starts with the layer of that point, and the sweep goes on with it. So
windows come to lie end to end, each starting where its predecessors' work ends. The highest T for
which the pool suffices is found by bisection.

Which one of the pool matters, since a machine with room for c layers that starts in the middle of
one (a part f of it is done already) can work on no more than c - f:

- at the boundary of a layer, one that memory bounds (its speed would do for more than c layers),
  the largest first: it wastes nothing there and would anywhere else;
- within a layer, of those that waste nothing the one with the least room to spare, so that the
  most forgiving are left for the end.

With an empty set of fixed windows this is next-fit packing with the order free; the loss against
the bound is what does not fit at the end, and a part of a layer here and there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from p2pllm.core.capacity import Window
from p2pllm.core.throughput import Span

FILL_STEPS = 5
"""Values of T that are tried; leaves about 1 % of the first interval."""


@dataclass(frozen=True, slots=True)
class Hand:
    """A machine of the pool.

    Attributes:
        index: of the machine.
        room: weight elements that its largest window streams per pass.
        order: breaks ties.
        window: the largest window that starts at a layer, or that ends at the last; None if it
            cannot hold that layer.
        held: the window it has now, if any.
    """

    index: int
    room: float
    order: float
    window: Callable[[int], Window | None]
    held: Window | None = None


def fill(
    fixed: Sequence[Span],
    rates: Sequence[float],
    compute: Sequence[int],
    layers: int,
    target: float,
    pool: Sequence[Hand],
    thrift: float | None = None,
) -> dict[int, Window] | None:
    """Windows for some of `pool` with which `target` passes per second can be had, or None.

    Args:
        fixed: spans of the windows that stay, from `spans_of`.
        rates: weight elements per second of each machine.
        compute: running sums of weight elements a pass streams.
        layers: how many.
        target: passes per second.
        pool: machines to be given windows.
        thrift: None to mind throughput alone; otherwise what moving an element of a layer counts,
            beside an element's worth of speed wasted.
    """
    total = compute[layers]
    ends = compute[: layers + 1]
    tolerance = total * 1e-9
    bound: list[tuple[float, float, Hand]] = []
    loose: list[tuple[float, float, Hand]] = []
    left_over = list(pool) if thrift is not None else []
    for hand in pool if thrift is None else ():
        spare = hand.room - rates[hand.index] / target
        if spare <= 0:
            bound.append((-hand.room, hand.order, hand))
        else:
            loose.append((spare, hand.order, hand))
    bound.sort(key=lambda item: item[:2])
    loose.sort(key=lambda item: item[:2])
    chosen: dict[int, Window] = {}
    room: dict[int, float] = {}
    waiting: list[tuple[int, int, int]] = []
    following, count = 0, len(fixed)
    point = 0.0
    end = total - tolerance
    while point < end:
        while following < count and fixed[following][0] <= point + tolerance:
            _, stop, deadline, index = fixed[following]
            if index not in room:
                room[index] = rates[index] / target
            heappush(waiting, (deadline, stop, index))
            following += 1
        limit = fixed[following][0] if following < count else total
        while point < limit - tolerance:
            if not waiting:
                layer = bisect_right(ends, point + tolerance) - 1
                done = point - ends[layer]
                if thrift is None:
                    placed = _take(bound, loose, done if done > tolerance else 0.0, layer)
                else:
                    placed = _take_near(left_over, rates, compute, target, point, layer, thrift)
                if placed is None:
                    return None
                index, window = placed
                chosen[index] = window
                room[index] = rates[index] / target
                heappush(waiting, (compute[window[1]], compute[window[1]], index))
                continue
            _, stop, index = waiting[0]
            left = room[index]
            if stop <= point + tolerance or left <= tolerance:
                heappop(waiting)
                continue
            used = min(left, stop - point, limit - point)
            room[index] = left - used
            point += used
        point = max(point, float(limit)) if limit < total else point
    return chosen


def _take(
    bound: list[tuple[float, float, Hand]],
    loose: list[tuple[float, float, Hand]],
    done: float,
    layer: int,
) -> tuple[int, Window] | None:
    """Take the fittest out of the pool for `layer`, of which `done` elements are done already."""
    while bound or loose:
        if bound and (done == 0.0 or not loose):
            hand = bound.pop(0)[2]
        else:
            at = bisect_left(loose, done, key=lambda item: item[0])
            hand = loose.pop(min(at, len(loose) - 1))[2]
        window = hand.window(layer)
        if window is not None:
            return hand.index, window
    return None


def _take_near(
    pool: list[Hand],
    rates: Sequence[float],
    compute: Sequence[int],
    target: float,
    point: float,
    layer: int,
    thrift: float,
) -> tuple[int, Window] | None:
    """Take the machine that moves and wastes least per element it does; staying counts as well."""
    best: tuple[int, Window] | None = None
    best_at, best_key = 0, (0.0, 0.0)
    for at, hand in enumerate(pool):
        held = hand.held
        can = rates[hand.index] / target
        options = [hand.window(layer)]
        if held is not None and held[0] <= layer < held[1]:
            options.append(held)
        for window in options:
            if window is None:
                continue
            used = min(can, compute[window[1]] - point)
            moved = 0
            if held is not None and window != held:
                low, high = max(window[0], held[0]), min(window[1], held[1])
                moved = compute[window[1]] - compute[window[0]]
                if low < high:
                    moved -= compute[high] - compute[low]
            wasted = min(can, hand.room) - used
            key = ((wasted + thrift * moved) / used, hand.order)
            if best is None or key < best_key:
                best, best_at, best_key = (hand.index, window), at, key
    if best is not None:
        pool.pop(best_at)
    return best


def fill_best(
    fixed: Sequence[Span],
    rates: Sequence[float],
    compute: Sequence[int],
    layers: int,
    pool: Sequence[Hand],
    high: float,
) -> tuple[float, dict[int, Window]]:
    """The highest T up to `high` for which `fill` finds windows, and these; 0 for none."""
    low, best = 0.0, dict[int, Window]()
    target = high
    for _ in range(FILL_STEPS):
        found = fill(fixed, rates, compute, layers, target, pool)
        if found is not None:
            low, best = target, found
            if target >= high:
                break
        else:
            high = target
        target = (low * high) ** 0.5 if low > 0.0 else high * 0.8
    return low, best


def unused(
    spans: Sequence[Span], rates: Sequence[float], total: int, target: float
) -> dict[int, float]:
    """Per machine, the part of its speed that is of no use to `target` passes per second.

    The same sweep, passing over what cannot be served.
    """
    room: dict[int, float] = {}
    waiting: list[tuple[int, int, int]] = []
    following, count = 0, len(spans)
    point = 0.0
    tolerance = total * 1e-9
    end = total - tolerance
    while point < end:
        while following < count and spans[following][0] <= point + tolerance:
            _, stop, deadline, index = spans[following]
            if index not in room:
                room[index] = rates[index] / target
            heappush(waiting, (deadline, stop, index))
            following += 1
        limit = spans[following][0] if following < count else total
        while point < limit - tolerance:
            if not waiting:
                point = float(limit)
                break
            _, stop, index = waiting[0]
            left = room[index]
            if stop <= point + tolerance or left <= tolerance:
                heappop(waiting)
                continue
            used = min(left, stop - point, limit - point)
            room[index] = left - used
            point += used
        point = max(point, float(limit)) if limit < total else point
    return {index: left * target / rates[index] for index, left in room.items()}
