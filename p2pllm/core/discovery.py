"""Addresses where somebody may listen, pinged until somebody answers.

mDNS, the command line and the memory of an earlier run name addresses. Each is pinged with growing
pauses; an answer, or any datagram from there, ends it. One that never answers is forgotten, but not
while this node is alone: then they are all the hope it has.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pllm.core.timers import TimerKey, Timers
from p2pllm.domain.ids import NodeId
from p2pllm.domain.records import Address

SEEDS_MAX = 256
"""Addresses pinged at a time; bounds what a flood of forged mDNS answers makes a node do."""


@dataclass(frozen=True, slots=True)
class DiscoveryConfig:
    """How long to knock.

    Attributes:
        first_pause_s: after the first ping; doubles each time.
        longest_pause_s: at most.
        attempts: until an address is forgotten.
    """

    first_pause_s: float = 0.5
    longest_pause_s: float = 15.0
    attempts: int = 20


@dataclass(slots=True)
class Seed:
    """One address.

    Attributes:
        address: where.
        node: who, where that is known.
        attempts: pings so far.
        sequence: of the last ping.
    """

    address: Address
    node: NodeId | None
    attempts: int = 0
    sequence: int = 0


class Discovery:
    """The addresses nobody has answered from yet."""

    def __init__(self, config: DiscoveryConfig) -> None:
        self._config = config
        self._timers = Timers()
        self._seeds: dict[str, Seed] = {}

    def __len__(self) -> int:
        return len(self._seeds)

    def add(self, address: Address, node: NodeId | None, now: float) -> bool:
        """Ping `address` from now on; false where there is no room or it is pinged already."""
        name = str(address)
        known = self._seeds.get(name)
        if known is not None:
            known.node = node or known.node
            return False
        if len(self._seeds) >= SEEDS_MAX:
            return False
        self._seeds[name] = Seed(address, node)
        self._timers.set(_key(name), now)
        return True

    def answered(self, source: Address, sender: NodeId, sequence: int | None) -> None:
        """`sender` spoke from `source`, answering the ping `sequence`, if any."""
        if not self._seeds:
            return
        for name, seed in list(self._seeds.items()):
            by_ack = sequence is not None and seed.attempts > 0 and seed.sequence == sequence
            if seed.address == source or seed.node == sender or by_ack:
                self._drop(name)

    def due(self, now: float, alone: bool) -> list[Seed]:
        """Whom to ping now; the caller sets `sequence`.

        Args:
            now: the time.
            alone: whether no other member is known to live, so that nothing is forgotten.
        """
        due: list[Seed] = []
        while (key := self._timers.pop(now)) is not None:
            seed = self._seeds[key[1]]
            if seed.attempts >= self._config.attempts and not alone:
                del self._seeds[key[1]]
                continue
            pause_s = self._config.first_pause_s * 2 ** min(seed.attempts, 16)
            self._timers.set(key, now + min(pause_s, self._config.longest_pause_s))
            seed.attempts += 1
            due.append(seed)
        return due

    def deadline(self) -> float | None:
        """When to call `due`."""
        return self._timers.deadline()

    def check(self) -> None:
        """Assert bounds, and that every seed has its timer."""
        self._timers.check()
        assert len(self._timers) == len(self._seeds) <= SEEDS_MAX
        assert all(_key(name) in self._timers for name in self._seeds)

    def _drop(self, name: str) -> None:
        del self._seeds[name]
        self._timers.cancel(_key(name))


def _key(name: str) -> TimerKey:
    return ("seed", name)
