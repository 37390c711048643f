"""Who is alive: SWIM with Lifeguard's refinements.

Theory of operation. Once per interval a node pings one other, going round a shuffled list. If no
ack comes in time, it asks a few helpers to ping the target for it, pings the target's other
addresses and knocks on its stream port. If nothing has come by the end of the interval, the target
is *suspected*, and that is gossiped. The suspect has time to refute by raising its incarnation; if
it does not, it is declared dead by whoever's timer ends first. The load per node is constant and
the time to detection independent of the size (Das et al., "SWIM", 2002).

Lifeguard (Dadgar et al., 2018) adds that a node distrusts itself first. Its *awareness* score rises
when its own probes fail without nacks and when it has to refute, and stretches its probe interval
and timeout. A suspicion starts long and shrinks as others confirm it independently. A suspect is
told so in the very ping that probes it.

    held | heard    ALIVE, newer incarnation   SUSPECT, same   DEAD, same              LEFT, same
    ALIVE           ALIVE                      SUSPECT         SUSPECT                 LEFT (1)
    SUSPECT         ALIVE                      confirm         confirm; DEAD if old    LEFT (1)
    DEAD            ALIVE                      -               -                       -
    LEFT            ALIVE                      -               -                       -

(1) if the owner's signed record says that it is leaving; otherwise like DEAD.

A claim about an older incarnation is stale, one about a newer one waits until the owner's signed
record with that incarnation was pulled; both are the caller's to sort out. DEAD from elsewhere does
not kill at once: after a healed partition both halves call each other dead, and each of them gets
half a suspicion's time to refute.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pllm.core.effects import Effect, Notify, SendDatagram, SendStream
from p2pllm.core.peers import Peer, Suspicion
from p2pllm.core.timers import Timers
from p2pllm.domain.gossip import Ack, Headline, Nack, News, Ping, PingRequest
from p2pllm.domain.ids import NodeId, short
from p2pllm.domain.messages import StreamProbe, StreamProbeAck
from p2pllm.domain.records import Address, MemberState, NodeRecord

RELAYS_MAX = 256
"""Pings a node does for others at a time; beyond it, it answers with a nack at once."""

ROUND_TRIP_STEP = 0.25
"""A round trip that changed by less is not made known anew."""

STREAM_ONLY_WARNING = 5
"""Probes in a row that only a stream answered, until datagrams count as blocked and not as lost."""

_PROBE_NEXT = ("probe-next", "")
_PROBE_TIMEOUT = ("probe-timeout", "")
_PROBE_END = ("probe-end", "")
_RECONNECT = ("reconnect", "")


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """How patient a node is. The defaults follow memberlist's LAN profile.

    Attributes:
        probe_interval_s: between two probes.
        probe_timeout_s: until helpers are asked.
        helpers: how many are.
        suspicion_multiplier: of log10(N + 1) and the interval: how long a confirmed suspicion is.
        suspicion_stretch: how much longer one without any confirmation is.
        confirmations: independent accusers until it is at its shortest.
        awareness_max: highest awareness score.
        reconnect_interval_s: between two pings of dead members, to find healed partitions.
        tombstone_s: how long dead members are remembered; shared for half of it.
        pause_s: a timer that comes so much too late means that this process stood still, so what
            did not arrive meanwhile proves nothing.
    """

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    helpers: int = 3
    suspicion_multiplier: float = 4.0
    suspicion_stretch: float = 6.0
    confirmations: int = 2
    awareness_max: int = 8
    reconnect_interval_s: float = 5.0
    tombstone_s: float = 24 * 3_600.0
    pause_s: float = 1.0


@dataclass(slots=True)
class _Probe:
    """The one probe under way."""

    target: NodeId
    sequence: int
    sent_s: float
    helpers: tuple[NodeId, ...] = ()
    # All helpers that answered with a nack.
    nacks: list[NodeId] = field(default_factory=list[NodeId])
    # Whether the other ways are being tried, so that the round trip no longer means anything.
    is_indirect: bool = False


@dataclass(slots=True)
class _Relay:
    """A ping done for somebody else."""

    requester: Address
    sequence: int
    target: NodeId


class Membership:
    """Failure detection as seen from one node.

    Whoever composes it feeds in the newest records (`learn`), claims about them (`claim`) and
    what arrives (`heard`, `ping`, ...), calls `fire` at `deadline()`, and takes `drain_changes()`
    after every call to spread what changed.

    Args:
        self_id: this node; never a peer of itself.
        config: how patient to be.
        random: the machine's own stream.
        news: what to attach to a ping or ack for this node.
    """

    def __init__(
        self,
        self_id: NodeId,
        *,
        config: MembershipConfig,
        random: random.Random,
        news: Callable[[NodeId | None, float], News],
    ) -> None:
        self._self_id = self_id
        self._config = config
        self._random = random
        self._news = news
        self._timers = Timers()
        self._sequence = 0
        self._awareness = 0
        self._peers: dict[NodeId, Peer] = {}
        # All and only the peers that are ALIVE or SUSPECT.
        self._live: list[NodeId] = []
        # All and only the peers that are DEAD and shared.
        self._dead: list[NodeId] = []
        # A permutation of the live ones, with some that died since; probed from the end.
        self._round: list[NodeId] = []
        self._probe: _Probe | None = None
        self._probe_next_s = 0.0
        self._relays: dict[int, _Relay] = {}
        self._changes: dict[NodeId, None] = {}
        self._measured_peers: dict[NodeId, None] = {}
        self._forgotten: list[NodeId] = []

    # -- what is known

    @property
    def awareness(self) -> int:
        """0 for a healthy node; higher the less it trusts itself."""
        return self._awareness

    @property
    def live(self) -> list[NodeId]:
        """Peers that are ALIVE or SUSPECT; not to be changed."""
        return self._live

    @property
    def size(self) -> int:
        """Live members, this node included."""
        return len(self._live) + 1

    def peer(self, node: NodeId) -> Peer | None:
        """What is known of `node`."""
        return self._peers.get(node)

    def state(self, node: NodeId) -> MemberState:
        """What is believed of `node`; LEFT for one nobody knows.

        Raises:
            KeyError: `node` is not known.
        """
        return self._peers[node].state

    def some(self, count: int, but: NodeId | None = None) -> list[NodeId]:
        """Up to `count` live peers, drawn at random."""
        drawn = self._random.sample(self._live, min(count + 1, len(self._live)))
        return [node for node in drawn if node != but][:count]

    def address_of(self, node: NodeId) -> Address | None:
        """Where a datagram to `node` should go."""
        peer = self._peers.get(node)
        known = () if peer is None else peer.reachable_at()
        return known[0] if known else None

    def drain_changes(self) -> list[NodeId]:
        """Peers whose state or accusers changed since the last call."""
        if not self._changes:
            return []
        changes, self._changes = list(self._changes), {}
        return changes

    def drain_measured(self) -> list[NodeId]:
        """Peers whose round trip changed notably since the last call."""
        measured, self._measured_peers = list(self._measured_peers), {}
        return measured

    def drain_forgotten(self) -> list[NodeId]:
        """Peers whose tombstone ran out since the last call."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def deadline(self) -> float | None:
        """When to call `fire`."""
        return self._timers.deadline()

    # -- what arrives

    def learn(self, record: NodeRecord, now: float) -> list[Effect]:
        """A newer signed record of `record.node` was stored. A higher incarnation revives it."""
        peer = self._peers.get(record.node)
        if peer is None:
            peer = Peer(record.node, record.incarnation, record.addresses, record.leaving)
            self._peers[record.node] = peer
            self._enter(peer, now)
            return [_notice("member_joined", peer, name=record.name)]
        risen = record.incarnation > peer.incarnation
        if peer.addresses != record.addresses:
            peer.addresses, peer.attempt = record.addresses, 0
        peer.incarnation, peer.leaving = record.incarnation, record.leaving
        self._changes[peer.node] = None
        if not risen or peer.state is MemberState.ALIVE:
            return []
        if peer.state is MemberState.SUSPECT:
            self._clear(peer)
            return [_notice("member_refuted", peer)]
        self._clear(peer)
        self._enter(peer, now)
        return [_notice("member_returned", peer, name=record.name)]

    def claim(self, headline: Headline, accuser: NodeId, now: float) -> list[Effect]:
        """Somebody believes the worst of a known peer, at the incarnation that is known here.

        Args:
            headline: SUSPECT, DEAD or LEFT.
            accuser: counts where the headline names none.
            now: the time.
        """
        peer = self._peers[headline.node]
        if not peer.is_live or headline.state is MemberState.ALIVE:
            return []
        accuser = headline.accuser or accuser
        if headline.state is MemberState.SUSPECT:
            return self._suspect(peer, accuser, now)
        if headline.state is MemberState.LEFT and peer.leaving:
            return self._bury(peer, MemberState.LEFT, now - headline.dead_for_s, now)
        suspicion = peer.suspicion
        if suspicion is not None and now - suspicion.started_s >= suspicion.shortest_s / 2:
            return self._bury(peer, MemberState.DEAD, now - headline.dead_for_s, now)
        return self._suspect(peer, accuser, now)

    def entomb(self, headline: Headline, now: float) -> None:
        """The peer just learnt is DEAD or LEFT, and was before this node heard of it."""
        self._bury(self._peers[headline.node], headline.state, now - headline.dead_for_s, now)

    def heard(self, sender: NodeId, source: Address) -> bool:
        """A datagram of `sender` came from `source`; whether the sender is known."""
        peer = self._peers.get(sender)
        if peer is None:
            return False
        if peer.source != source or peer.attempt:
            peer.source, peer.attempt = source, 0
        return True

    def hint(self, node: NodeId, address: Address) -> None:
        """A peer is said to be at `address`; believed where it was never heard of."""
        peer = self._peers[node]
        if peer.source is None and address not in peer.addresses:
            peer.source = address

    def ping(self, sender: NodeId, source: Address, message: Ping, now: float) -> list[Effect]:
        """Answer, if we are meant."""
        if message.target is not None and message.target != self._self_id:
            return []
        return [SendDatagram(source, Ack(message.sequence, self._news(sender, now)))]

    def ping_request(self, source: Address, message: PingRequest, now: float) -> list[Effect]:
        """Ping somebody for `source`."""
        address = self.address_of(message.target)
        if address is None or len(self._relays) >= RELAYS_MAX:
            return [SendDatagram(source, Nack(message.sequence))]
        sequence = self._next_sequence()
        self._relays[sequence] = _Relay(source, message.sequence, message.target)
        self._timers.set(("relay", str(sequence)), now + self._config.probe_timeout_s * 0.8)
        news = self._news(message.target, now)
        return [SendDatagram(address, Ping(sequence, message.target, news))]

    def ack(self, sender: NodeId, message: Ack, now: float) -> list[Effect]:
        """The target of our probe lives, or that of a probe we do for somebody else."""
        relay = self._relays.get(message.sequence)
        if relay is not None and relay.target == sender:
            del self._relays[message.sequence]
            self._timers.cancel(("relay", str(message.sequence)))
            return [SendDatagram(relay.requester, Ack(relay.sequence))]
        probe = self._probe
        if probe is None or probe.sequence != message.sequence:
            return []
        if sender == probe.target:
            if not probe.is_indirect:
                self._measured(self._peers[sender], now - probe.sent_s)
            self._peers[sender].stream_only = 0
        elif sender not in probe.helpers:
            return []
        return self._succeed(now)

    def nack(self, sender: NodeId, message: Nack) -> list[Effect]:
        """A helper of ours lives, though the target keeps silent."""
        probe = self._probe
        if (
            probe is not None
            and probe.sequence == message.sequence
            and sender in probe.helpers
            and sender not in probe.nacks
        ):
            probe.nacks.append(sender)
        return []

    def stream_probe(self, sender: NodeId, message: StreamProbe) -> list[Effect]:
        """Answer over the same stream."""
        return [SendStream(sender, StreamProbeAck(message.sequence))]

    def stream_probe_ack(self, sender: NodeId, message: StreamProbeAck, now: float) -> list[Effect]:
        """The target lives, but datagrams do not get through to it."""
        probe = self._probe
        if probe is None or probe.sequence != message.sequence or probe.target != sender:
            return []
        peer = self._peers[sender]
        peer.stream_only += 1
        effects: list[Effect] = []
        if peer.stream_only == STREAM_ONLY_WARNING:
            effects.append(_notice("datagrams_blocked", peer, level="warning"))
        return effects + self._succeed(now)

    def was_accused(self) -> None:
        """This node had to refute: it may be slow."""
        self._raise_awareness(1)

    def resumed(self, late_s: float) -> None:
        """This process stood still for `late_s`: what did not arrive meanwhile proves nothing."""
        self._end_probe()
        self._raise_awareness(1)
        for node in self._live:
            suspicion = self._peers[node].suspicion
            if suspicion is not None:
                suspicion.started_s += late_s
                self._timers.set(("suspect", node), suspicion.ends_s)

    def start_over(self) -> list[Address]:
        """Forget everybody; where they were, to be looked for anew."""
        self._end_probe()
        addresses = [address for peer in self._peers.values() for address in peer.reachable_at()]
        for peer in list(self._peers.values()):
            self._clear(peer)
            self._forget(peer)
        self._live, self._dead, self._round = [], [], []
        return addresses

    def stop(self) -> None:
        """Probe nobody any more: this node has left."""
        self._end_probe()
        for key in (_PROBE_NEXT, _RECONNECT):
            self._timers.cancel(key)

    # -- time

    def fire(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        while (key := self._timers.pop(now)) is not None:
            kind, name = key
            if kind == "probe-next":
                effects += self._start_probe(now)
            elif kind == "probe-timeout":
                effects += self._ask_helpers(now)
            elif kind == "probe-end":
                effects += self._fail(now)
            elif kind == "relay":
                relay = self._relays.pop(int(name))
                effects.append(SendDatagram(relay.requester, Nack(relay.sequence)))
            elif kind == "suspect":
                effects += self._bury(self._peers[NodeId(name)], MemberState.DEAD, now, now)
            elif kind == "remind":
                effects += self._remind(self._peers[NodeId(name)], now)
            elif kind == "unshare":
                self._hide(self._peers[NodeId(name)])
            elif kind == "forget":
                self._forget(self._peers[NodeId(name)])
            else:
                effects += self._reconnect(now)
        return effects

    def check(self) -> None:
        """Assert the invariants written beside the fields."""
        self._timers.check()
        assert self._self_id not in self._peers
        live = [peer.node for peer in self._peers.values() if peer.is_live]
        assert sorted(self._live) == sorted(live)
        dead = [
            peer.node
            for peer in self._peers.values()
            if peer.state is MemberState.DEAD and peer.shared
        ]
        assert sorted(self._dead) == sorted(dead)
        assert len(self._round) == len(set(self._round)) <= len(self._peers)
        assert len(self._relays) <= RELAYS_MAX
        assert 0 <= self._awareness <= self._config.awareness_max
        for peer in self._peers.values():
            assert (peer.suspicion is not None) == (peer.state is MemberState.SUSPECT)
            assert (("suspect", peer.node) in self._timers) == (peer.suspicion is not None)
            assert (("forget", peer.node) in self._timers) == (not peer.is_live)
            assert ("remind", peer.node) not in self._timers or peer.suspicion is not None
        assert (self._probe is not None) == (_PROBE_END in self._timers)

    # -- probing

    def _start_probe(self, now: float) -> list[Effect]:
        if self._probe is not None:
            return []  # its end starts the next one
        target = self._next_target()
        if target is None:
            return []
        address = self.address_of(target)
        scale = 1 + self._awareness
        probe = self._probe = _Probe(target, self._next_sequence(), now)
        self._probe_next_s = now + self._config.probe_interval_s
        self._timers.set(_PROBE_TIMEOUT, now + self._config.probe_timeout_s * scale)
        self._timers.set(_PROBE_END, now + self._config.probe_interval_s * scale)
        self._timers.set(_PROBE_NEXT, self._probe_next_s)
        if address is None:
            return []
        return [SendDatagram(address, Ping(probe.sequence, target, self._news(target, now)))]

    def _next_target(self) -> NodeId | None:
        for _ in range(2):
            while self._round:
                node = self._round.pop()
                peer = self._peers.get(node)
                if peer is not None and peer.is_live:
                    return node
            self._round = list(self._live)
            self._random.shuffle(self._round)
        return None

    def _ask_helpers(self, now: float) -> list[Effect]:
        probe = self._probe
        assert probe is not None
        probe.is_indirect = True
        peer = self._peers[probe.target]
        peer.attempt += 1
        probe.helpers = tuple(self.some(self._config.helpers, but=probe.target))
        effects: list[Effect] = []
        for helper in probe.helpers:
            address = self.address_of(helper)
            if address is not None:
                effects.append(SendDatagram(address, PingRequest(probe.sequence, probe.target)))
        ping = Ping(probe.sequence, probe.target, self._news(probe.target, now))
        effects += [SendDatagram(address, ping) for address in peer.reachable_at()]
        effects.append(SendStream(probe.target, StreamProbe(probe.sequence)))
        return effects

    def _succeed(self, now: float) -> list[Effect]:
        self._end_probe()
        self._raise_awareness(-1)
        if _PROBE_NEXT not in self._timers:
            self._timers.set(_PROBE_NEXT, max(now, self._probe_next_s))
        return []

    def _fail(self, now: float) -> list[Effect]:
        probe = self._probe
        assert probe is not None
        self._end_probe()
        self._timers.set(_PROBE_NEXT, max(now, self._probe_next_s))
        peer = self._peers[probe.target]
        if not peer.is_live:
            return []
        self._raise_awareness(len(probe.helpers) - len(probe.nacks) if probe.helpers else 1)
        return self._suspect(peer, self._self_id, now)

    def _end_probe(self) -> None:
        self._probe = None
        self._timers.cancel(_PROBE_TIMEOUT)
        self._timers.cancel(_PROBE_END)

    def _reconnect(self, now: float) -> list[Effect]:
        if not self._dead:
            return []
        pace = 1.0 if self._live else 0.2
        self._timers.set(_RECONNECT, now + self._config.reconnect_interval_s * pace)
        node = self._random.choice(self._dead)
        address = self.address_of(node)
        self._peers[node].attempt += 1
        if address is None:
            return []
        return [SendDatagram(address, Ping(self._next_sequence(), node, self._news(node, now)))]

    def _remind(self, peer: Peer, now: float) -> list[Effect]:
        """Tell one that this node itself found silent that it has to refute, until it is over."""
        self._timers.set(("remind", peer.node), now + self._config.probe_interval_s)
        ping = Ping(self._next_sequence(), peer.node, self._news(peer.node, now))
        peer.attempt += 1
        return [SendDatagram(address, ping) for address in peer.reachable_at()[:1]]

    def _measured(self, peer: Peer, round_trip_s: float) -> None:
        shown = peer.round_trip_s
        if shown is None:
            peer.smoothed_round_trip_s = round_trip_s
        else:
            peer.smoothed_round_trip_s += (round_trip_s - peer.smoothed_round_trip_s) / 4
        smoothed = peer.smoothed_round_trip_s
        if shown is None or abs(smoothed - shown) > max(ROUND_TRIP_STEP * shown, 0.001):
            peer.round_trip_s = smoothed
            self._measured_peers[peer.node] = None

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _raise_awareness(self, by: int) -> None:
        self._awareness = min(max(self._awareness + by, 0), self._config.awareness_max)

    # -- states

    def _enter(self, peer: Peer, now: float) -> None:
        """`peer` is live from now on, and was not before."""
        self._live.append(peer.node)
        if peer.node not in self._round:
            self._round.insert(self._random.randint(0, len(self._round)), peer.node)
        self._changes[peer.node] = None
        if _PROBE_NEXT not in self._timers and self._probe is None:
            wait_s = self._random.uniform(0.0, self._config.probe_interval_s)
            self._timers.set(_PROBE_NEXT, now + wait_s)

    def _clear(self, peer: Peer) -> None:
        """Undo whatever was held against `peer`."""
        self._timers.cancel(("suspect", peer.node))
        self._timers.cancel(("remind", peer.node))
        self._timers.cancel(("unshare", peer.node))
        self._timers.cancel(("forget", peer.node))
        if peer.state is MemberState.DEAD and peer.shared:
            self._dead.remove(peer.node)
        peer.state, peer.suspicion, peer.shared = MemberState.ALIVE, None, True
        peer.dead_since_s = 0.0

    def _suspect(self, peer: Peer, accuser: NodeId, now: float) -> list[Effect]:
        suspicion = peer.suspicion
        if suspicion is not None:
            if suspicion.confirm(accuser):
                self._timers.set(("suspect", peer.node), max(now, suspicion.ends_s))
                self._changes[peer.node] = None
            return []
        config = self._config
        shortest_s = (
            config.suspicion_multiplier * math.log10(self.size + 1) * config.probe_interval_s
        )
        # Too few others to confirm: then the shortest time holds at once.
        confirmations = config.confirmations if self.size - 2 >= config.confirmations else 0
        longest_s = shortest_s * config.suspicion_stretch
        suspicion = Suspicion(now, shortest_s, longest_s, confirmations, [accuser])
        peer.state, peer.suspicion = MemberState.SUSPECT, suspicion
        self._timers.set(("suspect", peer.node), suspicion.ends_s)
        if accuser == self._self_id:
            self._timers.set(("remind", peer.node), now + config.probe_interval_s)
        self._changes[peer.node] = None
        return [_notice("member_suspected", peer, accuser=short(accuser))]

    def _bury(self, peer: Peer, state: MemberState, since_s: float, now: float) -> list[Effect]:
        self._timers.cancel(("suspect", peer.node))
        self._timers.cancel(("remind", peer.node))
        peer.state, peer.suspicion = state, None
        peer.dead_since_s = since_s
        self._live.remove(peer.node)
        if state is MemberState.DEAD:
            self._dead.append(peer.node)
            if _RECONNECT not in self._timers:
                self._timers.set(_RECONNECT, now + self._config.reconnect_interval_s)
        tombstone_s = self._config.tombstone_s
        self._timers.set(("unshare", peer.node), max(now, since_s + tombstone_s / 2))
        self._timers.set(("forget", peer.node), max(now, since_s + tombstone_s))
        self._changes[peer.node] = None
        event = "member_died" if state is MemberState.DEAD else "member_left"
        return [_notice(event, peer, level="warning" if state is MemberState.DEAD else "info")]

    def _forget(self, peer: Peer) -> None:
        del self._peers[peer.node]
        self._forgotten.append(peer.node)
        if peer.node in self._round:
            self._round.remove(peer.node)
        self._changes.pop(peer.node, None)

    def _hide(self, peer: Peer) -> None:
        if peer.state is MemberState.DEAD:
            self._dead.remove(peer.node)
        peer.shared = False
        self._changes[peer.node] = None


def _notice(event: str, peer: Peer, level: str = "info", **fields: str) -> Notify:
    return Notify(
        event, level, {"node": short(peer.node), "incarnation": peer.incarnation, **fields}
    )
