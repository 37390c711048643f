"""Peers that failed a call moments ago.

The data plane does not wait for membership to notice a crash: a failed or late call puts the peer
here at once. The first failure keeps it out for `base_s`; each further one, before there was
evidence of success, doubles that up to `max_s`. So a peer that comes back is tried again soon,
and one that stays broken costs less and less.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pllm.domain.ids import NodeId

PEERS_MAX = 1_024
"""More peers than that cannot usefully be avoided at a time; the one soonest let in gives way."""


@dataclass(slots=True)
class _Entry:
    failures: int
    until: float
    forget_at: float


class Blacklist:
    """Whom not to route to, for the moment.

    Args:
        base_s: how long a first failure counts.
        max_s: the longest that a failure counts.
    """

    def __init__(self, *, base_s: float = 2.0, max_s: float = 60.0) -> None:
        self._base_s = base_s
        self._max_s = max_s
        self._entries: dict[NodeId, _Entry] = {}

    def add(self, node: NodeId, now: float) -> None:
        """A call to `node` failed. Failures while it is out already count as one."""
        self._forget(now)
        entry = self._entries.get(node)
        if entry is not None and now < entry.until:
            return
        failures = 1 if entry is None else entry.failures + 1
        period_s = min(self._max_s, self._base_s * 2.0 ** min(failures - 1, 32))
        until = now + period_s
        self._entries[node] = _Entry(failures, until, until + self._max_s)
        if len(self._entries) > PEERS_MAX:
            del self._entries[min(self._entries, key=lambda peer: self._entries[peer].until)]

    def succeeded(self, node: NodeId) -> None:
        """A call to `node` went well: let it in, and forget its failures."""
        self._entries.pop(node, None)

    def active(self, now: float) -> frozenset[NodeId]:
        """Whom to avoid at `now`."""
        return frozenset(node for node, entry in self._entries.items() if now < entry.until)

    def next_change(self, now: float) -> float | None:
        """When `active` changes next after `now`."""
        return min(
            (entry.until for entry in self._entries.values() if entry.until > now), default=None
        )

    def check(self) -> None:
        """Assert the invariants."""
        assert len(self._entries) <= PEERS_MAX
        for entry in self._entries.values():
            assert entry.failures >= 1
            assert entry.until <= entry.forget_at

    def _forget(self, now: float) -> None:
        for node in [node for node, entry in self._entries.items() if entry.forget_at <= now]:
            del self._entries[node]
