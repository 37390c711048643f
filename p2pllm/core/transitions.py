"""Whether a plan can be carried out at all: make before break, with full memory.

A machine drops a layer only once others hold it (`p2pllm.core.holdings`), and where its memory is
full it loads only what its drops have made room for. Two full machines that are to change places,
each the only holder of what the other is to get, would wait for each other for ever. Whether that
happens follows from the view, so every node can tell, and leave such a plan alone.

The order of loads and drops does not matter: loads only ever allow further drops, and a drop only
what room it makes for further loads; a layer is dropped only while enough others hold it.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pllm.core.capacity import Window


def can_be_carried_out(
    held: Sequence[Window | None],
    planned: Sequence[Window | None],
    rooms: Sequence[int],
    sizes: Sequence[int],
    replicas: int,
) -> bool:
    """Whether loads where there is room, and drops of what others hold, lead to `planned`.

    Args:
        held: per machine, unrolled.
        planned: the same machines.
        rooms: what each can hold, in the unit of `sizes`.
        sizes: per layer.
        replicas: holders beside the one that drops a layer, where the plan has as many.
    """
    ring = len(sizes)
    have, want = _layers(held, ring), _layers(planned, ring)
    holders, copies = [0] * ring, [0] * ring
    for layers in have:
        for layer in layers:
            holders[layer] += 1
    for layers in want:
        for layer in layers:
            copies[layer] += 1
    free = [
        room - sum(sizes[layer] for layer in layers)
        for room, layers in zip(rooms, have, strict=True)
    ]
    open_ = [index for index in range(len(have)) if have[index] != want[index]]
    progress = True
    while open_ and progress:
        progress = False
        for index in open_:
            for layer in sorted(want[index] - have[index]):
                if sizes[layer] <= free[index]:
                    have[index].add(layer)
                    holders[layer] += 1
                    free[index] -= sizes[layer]
                    progress = True
            for layer in sorted(have[index] - want[index]):
                if copies[layer] and holders[layer] - 1 >= min(replicas, copies[layer]):
                    have[index].discard(layer)
                    holders[layer] -= 1
                    free[index] += sizes[layer]
                    progress = True
        open_ = [index for index in open_ if have[index] != want[index]]
    return not open_


def _layers(windows: Sequence[Window | None], ring: int) -> list[set[int]]:
    return [
        {layer % ring for layer in range(*window)} if window is not None else set[int]()
        for window in windows
    ]
