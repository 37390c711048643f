"""What a placement can deliver: the best throughput of any routing, and the fewest hops.

Throughput T (tokens per second of the whole swarm) is feasible if every layer can be given T
passes per second, a node's passes over all its layers together taking no more than its speed. For
contiguous windows that is a convex bipartite flow, which a sweep along the layers decides exactly:
at each point, of the nodes whose window holds it, use up the one whose window ends first (Glover,
"Maximum matching in a convex bipartite graph", 1967). A window that wraps is two intervals with
one speed; the sweep then saves that speed for the later interval, which gives a lower bound.

Points along the layers are sums of weight elements, so layers may differ in size.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from p2pllm.core.capacity import Window

PRECISION = 0.004
"""Relative error of `throughput`; well below what a node would move for."""

Span = tuple[int, int, int, int]
"""Start, stop and deadline in weight elements, and the index of the node."""


def spans_of(windows: Sequence[Window | None], prefix: Sequence[int], ring: int) -> list[Span]:
    """Windows as unwrapped spans in ascending order, for `shortfall`."""
    total = prefix[ring]
    spans: list[Span] = []
    for index, window in enumerate(windows):
        if window is None:
            continue
        start, stop = window
        if stop <= ring:
            spans.append((prefix[start], prefix[stop], prefix[stop], index))
        else:
            spans.append((prefix[start], total, total, index))
            spans.append((0, prefix[stop - ring], total, index))
    spans.sort()
    return spans


def shortfall(
    spans: Sequence[Span], rates: Sequence[float], total: int, target: float
) -> float | None:
    """Where along the layers `target` passes per second cannot be had; None where they can.

    Args:
        spans: from `spans_of`.
        rates: weight elements per second of each node.
        total: weight elements of all layers.
        target: passes per second.
    """
    room: dict[int, float] = {}
    waiting: list[tuple[int, int, int]] = []
    count = len(spans)
    following = 0
    point = 0.0
    slack = total * 1e-9
    end = total - slack
    while point < end:
        while following < count and spans[following][0] <= point + slack:
            _, stop, deadline, index = spans[following]
            if index not in room:
                room[index] = rates[index] / target
            heappush(waiting, (deadline, stop, index))
            following += 1
        limit = spans[following][0] if following < count else total
        while point < limit - slack:
            if not waiting:
                return point
            _, stop, index = waiting[0]
            left = room[index]
            if stop <= point + slack or left <= slack:
                heappop(waiting)
                continue
            used = min(left, stop - point, limit - point)
            room[index] = left - used
            point += used
        point = max(point, float(limit)) if limit < total else point
    return None


def throughput(spans: Sequence[Span], rates: Sequence[float], total: int) -> float:
    """The highest feasible passes per second, within `PRECISION`; 0 where a layer has no holder."""
    if not spans or total <= 0:
        return 0.0
    nodes = sorted({span[3] for span in spans})
    high = sum(rates[index] for index in nodes) / total
    if high <= 0.0:
        return 0.0
    low = high
    for _ in range(64):
        if shortfall(spans, rates, total, low) is None:
            break
        high = low
        low /= 2
    else:
        return 0.0
    while high > low * (1 + PRECISION):
        middle = (low * high) ** 0.5
        if shortfall(spans, rates, total, middle) is None:
            low = middle
        else:
            high = middle
    return low


def hops_min(windows: Sequence[Window | None], ring: int) -> int:
    """The fewest windows that a path through all layers needs; 0 where there is no path."""
    ranges: list[Window] = []
    for window in windows:
        if window is None:
            continue
        start, stop = window
        ranges.append((start, min(stop, ring)))
        if stop > ring:
            ranges.append((0, stop - ring))
    ranges.sort()
    hops = position = furthest = index = 0
    while position < ring:
        while index < len(ranges) and ranges[index][0] <= position:
            furthest = max(furthest, ranges[index][1])
            index += 1
        if furthest <= position:
            return 0
        position = furthest
        hops += 1
    return hops
