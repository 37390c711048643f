"""Fleets to place a model on: what machines there are, and which come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from p2pllm.core.capacity import stable_fraction
from p2pllm.domain.ids import NodeId

LAYERS = 80
"""Of the model that is placed, all of one size."""

SPREAD = 4
"""Memory and speed differ by up to 2 to that power, 16-fold."""

SPEED = 1_000.0
"""Layers per second of the slowest machine."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A machine of a fleet.

    Attributes:
        node: its id.
        room: layers that fit into its memory, at most all of them.
        rate: layers per second.
    """

    node: NodeId
    room: int
    rate: float

    @property
    def anchor(self) -> float:
        """Where consistent hashing puts it on the ring of layers, in [0, 1)."""
        return stable_fraction("bench", self.node)


Fleet = tuple[Peer, ...]
"""In ascending order of id."""


def _mixed(random: Random, size: int, memory: float) -> list[tuple[float, float]]:
    """Memory shares and speeds, 16-fold apart; total memory is `memory` times the model."""
    parts = [2 ** random.uniform(0, SPREAD) for _ in range(size)]
    speeds = [SPEED * 2 ** random.uniform(0, SPREAD) for _ in range(size)]
    scale = memory * LAYERS / sum(parts)
    return [(part * scale, speed) for part, speed in zip(parts, speeds, strict=True)]


def _identical(random: Random, size: int, memory: float) -> list[tuple[float, float]]:
    return [(memory * LAYERS / size, SPEED)] * size


def _giant(random: Random, size: int, memory: float) -> list[tuple[float, float]]:
    """One machine holds three quarters of the model, the others share the rest."""
    if size == 1:
        return [(memory * LAYERS, SPEED)]
    rest = (memory - 0.75) * LAYERS / (size - 1)
    return [(0.75 * LAYERS, 16 * SPEED)] + [(rest, SPEED)] * (size - 1)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fleet.

    Attributes:
        memory: total memory, in models: from and to.
        machines: memory in layers and speed of each machine of a fleet of this size and memory.
    """

    memory: tuple[float, float]
    machines: Callable[[Random, int, float], list[tuple[float, float]]]


KINDS: dict[str, Kind] = {
    "mixed": Kind((1.5, 3.0), _mixed),
    "identical": Kind((2.0, 2.0), _identical),
    "giant": Kind((1.5, 1.5), _giant),
    "barely": Kind((1.02, 1.02), _mixed),
    "ample": Kind((6.0, 6.0), _mixed),
}


def fleet(kind: str, size: int, seed: int) -> Fleet:
    """The machines of one fleet; together they can hold the model."""
    chosen = KINDS[kind]
    random = _random(kind, size, seed)
    memory = random.uniform(*chosen.memory)
    machines = chosen.machines(random, size, memory)
    rooms = [max(1, min(LAYERS, round(room))) for room, _ in machines]
    least = round(min(memory, float(size)) * LAYERS)
    # Rounding must not take away what makes the fleet sufficient; the smallest get it back.
    while sum(rooms) < min(least, round(1.02 * LAYERS)):
        smallest = min(range(size), key=lambda index: (rooms[index], index))
        rooms[smallest] += 1
    names = sorted(f"{random.getrandbits(128):032x}" for _ in range(size))
    return tuple(
        Peer(NodeId(name), room, rate)
        for name, room, (_, rate) in zip(names, rooms, machines, strict=True)
    )


def churn(kind: str, start: Fleet, seed: int, steps: int) -> Iterator[tuple[Fleet, Peer]]:
    """The fleet after each of alternating joins and leaves, and who came or went.

    A joiner is a machine of the same kind of fleet. Whoever leaves is drawn from those without
    whom memory still suffices as it did at the start; the joiner is always one of them.
    """
    random = _random(f"{kind} churn", len(start), seed)
    spare = [fleet(kind, len(start), seed + 1_000 * (number + 1)) for number in range(steps)]
    least = min(sum(peer.room for peer in start), round(1.02 * LAYERS))
    now = start
    for number in range(steps):
        if number % 2 == 0:
            changed = random.choice(spare[number])
            now = tuple(sorted((*now, changed), key=lambda peer: peer.node))
        else:
            total = sum(peer.room for peer in now)
            able = [peer for peer in now if total - peer.room >= least]
            changed = random.choice(able)
            now = tuple(peer for peer in now if peer is not changed)
        yield now, changed


def throughput_bound(peers: Sequence[Peer]) -> float:
    """No placement gives more: the highest T with `sum(min(rate, room * T)) >= LAYERS * T`."""
    low, high = 0.0, sum(peer.rate for peer in peers) / LAYERS
    for _ in range(50):
        middle = (low + high) / 2
        if sum(min(peer.rate, peer.room * middle) for peer in peers) >= LAYERS * middle:
            low = middle
        else:
            high = middle
    return high


def hops_bound(peers: Sequence[Peer]) -> int:
    """No path has fewer hops: the largest machines that can hold the model together."""
    held = 0
    for count, room in enumerate(sorted((peer.room for peer in peers), reverse=True), 1):
        held += room
        if held >= LAYERS:
            return count
    return len(peers)


def _random(name: str, size: int, seed: int) -> Random:
    return Random(f"{name} {size} {seed}")
