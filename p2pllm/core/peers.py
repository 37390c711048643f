"""What `Membership` keeps of each peer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2pllm.domain.ids import NodeId
from p2pllm.domain.records import Address, MemberState


@dataclass(slots=True)
class Suspicion:
    """A suspicion under way: since when, by whom, and how long it may last."""

    started_s: float
    shortest_s: float
    longest_s: float
    confirmations: int
    # All who accused, the first one first; at most `confirmations + 1`.
    accusers: list[NodeId]

    @property
    def ends_s(self) -> float:
        """When it becomes a death."""
        confirmed = len(self.accusers) - 1
        if confirmed >= self.confirmations:
            return self.started_s + self.shortest_s
        share = math.log(confirmed + 1) / math.log(self.confirmations + 1)
        return self.started_s + self.longest_s - share * (self.longest_s - self.shortest_s)

    def confirm(self, accuser: NodeId) -> bool:
        """Count `accuser`; whether that is news."""
        if accuser in self.accusers or len(self.accusers) > self.confirmations:
            return False
        self.accusers.append(accuser)
        return True


@dataclass(slots=True)
class Peer:
    """What is known of another node."""

    node: NodeId
    incarnation: int
    addresses: tuple[Address, ...]
    leaving: bool
    state: MemberState = MemberState.ALIVE
    # When it died or left; 0 otherwise.
    dead_since_s: float = 0.0
    # Whether others are told of it; false for the second half of a tombstone.
    shared: bool = True
    # Where its last datagram came from.
    source: Address | None = None
    # Which of its addresses to try next, counted up on every failure.
    attempt: int = 0
    # Smoothed over the last probes, and as last made known: only a notable change is worth a plan.
    smoothed_round_trip_s: float = 0.0
    round_trip_s: float | None = None
    # Probes in a row that only a stream answered.
    stream_only: int = 0
    # Set exactly while the state is SUSPECT.
    suspicion: Suspicion | None = None

    @property
    def is_live(self) -> bool:
        """Alive, or merely suspected."""
        return self.state <= MemberState.SUSPECT

    def reachable_at(self) -> tuple[Address, ...]:
        """All its addresses, the most promising first."""
        known = self.addresses
        if self.source is not None:
            known = (self.source, *(item for item in known if item != self.source))
        start = self.attempt % len(known) if known else 0
        return known[start:] + known[:start]
