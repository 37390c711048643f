"""What one node knows of the swarm: membership, records and gossip in one machine.

Everything that arrives becomes one of three things: a sign of life (`Membership`), a headline,
which is compared with what is held and leads to a claim, a pull or a correction, or a signed body,
which is merged into the `RecordStore`. Whatever changed by it is announced (`Dissemination`), so it
goes on to others.

    headline about another node           what happens
    unknown, or a newer stamp             pull its record from the sender
    a newer load                          pull the load
    SUSPECT, DEAD or LEFT, same stamp     a claim for `Membership`
    ALIVE or older, but DEAD or LEFT here the sender is corrected

    headline about this node
    a newer stamp than its own            an earlier life: pull it, then outbid its incarnation
    SUSPECT or worse, same incarnation    refute: raise the incarnation
    SUSPECT or worse, older incarnation   refuted already: show the sender
"""

from __future__ import annotations

import random as random_module
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from p2pllm.core.discovery import Discovery, DiscoveryConfig
from p2pllm.core.effects import Effect, Notify, SendDatagram
from p2pllm.core.events import DatagramReceived
from p2pllm.core.gossip import FACT, LOAD, NODE, Dissemination, GossipConfig, estimated_size
from p2pllm.core.membership import Membership, MembershipConfig
from p2pllm.core.records import HybridClock, Merge, RecordStore
from p2pllm.core.timers import TimerKey, Timers
from p2pllm.domain.errors import ClientError, ModelNotFoundError
from p2pllm.domain.gossip import (
    Ack,
    Bodies,
    FactHeadline,
    Gossip,
    GossipItem,
    Headline,
    Nack,
    News,
    Ping,
    PingRequest,
    Pull,
    Signed,
    SignedBody,
    SyncDigest,
    SyncEntries,
)
from p2pllm.domain.ids import ModelId, NodeId, short
from p2pllm.domain.messages import StreamProbe, StreamProbeAck
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import (
    COUNTER_MAX,
    INCARNATION_MAX,
    MODELS_MAX,
    Address,
    Holding,
    HoldingState,
    HybridTime,
    LoadRecord,
    Member,
    MemberState,
    ModelFact,
    NodeRecord,
    SwarmView,
)

MEMBERS_MAX = 32_768
"""The largest swarm aimed at is 10,000 nodes; the rest is room for tombstones. Bounds what a
member with many identities can make the others store: 32 MiB of bodies."""

LEAVE_FANOUT = 32
"""Peers told directly of a farewell; the others hear it by gossip."""

_LEAVE = ("leave", "")
_LOAD = ("load", "")


RECORD_BYTES_MAX = 700
"""Of this node's own record, signed: with signature and certificate it must fit a datagram."""


def _shortened(record: NodeRecord) -> NodeRecord | None:
    """The record without what is missed least; None where nothing can be left out.

    What is merely being loaded goes first, then all but two addresses, then models beyond those
    held, then holdings: others then count less on this node than they might, which is safe.
    """
    for holding in reversed(record.holdings):
        if holding.state is HoldingState.LOADING:
            kept = tuple(item for item in record.holdings if item is not holding)
            return replace(record, holdings=kept)
    if len(record.addresses) > 2:
        return replace(record, addresses=record.addresses[:-1])
    held = {holding.model for holding in record.holdings}
    for model in reversed(record.models):
        if model not in held:
            return replace(record, models=tuple(item for item in record.models if item != model))
    if record.holdings:
        return replace(record, holdings=record.holdings[:-1])
    return None


class Sign(Protocol):
    """Puts this node's signature on what it says."""

    def node(self, record: NodeRecord) -> Signed[NodeRecord]:
        """Sign a node record."""
        ...

    def load(self, record: LoadRecord) -> Signed[LoadRecord]:
        """Sign a load record; its certificate may stay empty, see `Signed`."""
        ...

    def fact(self, fact: ModelFact) -> Signed[ModelFact]:
        """Sign a model fact."""
        ...


@dataclass(frozen=True, slots=True)
class SwarmConfig:
    """All of it.

    Attributes:
        membership: failure detection.
        gossip: spreading.
        discovery: first contact.
        members_max: most nodes known, dead ones included.
        load_interval_s: between two load records of this node, at least; stretched in proportion
            to the swarm's size beyond `load_members`, so that traffic per node stays the same.
        load_members: see there.
        leave_s: how long a farewell is spread before the node may stop.
    """

    membership: MembershipConfig = field(default_factory=MembershipConfig)
    gossip: GossipConfig = field(default_factory=GossipConfig)
    discovery: DiscoveryConfig = field(default_factory=DiscoveryConfig)
    members_max: int = MEMBERS_MAX
    load_interval_s: float = 1.0
    load_members: int = 4
    leave_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """This node's load of the moment; see `LoadRecord`."""

    queue_steps: int = 0
    sessions: int = 0
    kv_free_bytes: int = 0
    tokens_per_s: float = 0.0


class Swarm:
    """The swarm as one node knows it.

    Every method that returns effects also may change `deadline()`; call `fire` when it comes.

    Args:
        record: this node's record. Its incarnation must be higher than any it ever used: stored
            + 1. Store `incarnation` whenever it changed.
        config: patience and pace.
        sign: signs what this node says.
        random: this machine's own stream.
        size_of: bytes of an item in a datagram, exact or an upper bound.
        now: the time of construction.
    """

    def __init__(
        self,
        record: NodeRecord,
        *,
        config: SwarmConfig,
        sign: Sign,
        random: random_module.Random,
        now: float,
        size_of: Callable[[GossipItem], int] = estimated_size,
    ) -> None:
        self._id = record.node
        self._config = config
        self._sign = sign
        self._timers = Timers()
        self._store = RecordStore(config.members_max)
        self._clock = HybridClock(record.node)
        self._membership = Membership(
            record.node, config=config.membership, random=random, news=self._news_for
        )
        self._gossip = Dissemination(self, config=config.gossip, size_of=size_of)
        self._discovery = Discovery(config.discovery)
        self._sequence = 2**32  # apart from the probes', which count from 1
        self._is_leaving = False
        self._has_left = False
        self._load: Load | None = None
        self._load_version = 0
        self._load_sent: Load | None = None
        self._load_next_s = now
        self._view: SwarmView | None = None
        self._revision = 0
        # All and only the members of the view; those of _stale are out of date.
        self._members: dict[NodeId, Member] = {}
        self._order: list[NodeId] = []
        self._stale: dict[NodeId, None] = {}
        self._store_own(record, now)

    # -- what is known

    @property
    def incarnation(self) -> int:
        """This node's; to be stored by the shell, since the next start must be higher."""
        return self._own.incarnation

    @property
    def own(self) -> NodeRecord:
        """This node's record as it stands."""
        return self._own

    @property
    def own_load(self) -> LoadRecord | None:
        """This node's load as last published."""
        signed = self._store.load(self._id)
        return None if signed is None else signed.value

    @property
    def revision(self) -> int:
        """Rises whenever `view` would return something else."""
        return self._revision

    @property
    def has_left(self) -> bool:
        """Whether a farewell was spread for long enough, after `leave`."""
        return self._has_left

    @property
    def awareness(self) -> int:
        """0 while this node trusts itself; see `Membership.awareness`."""
        return self._membership.awareness

    @property
    def equivocators(self) -> tuple[NodeId, ...]:
        """Members caught saying different things under one stamp."""
        return self._store.equivocators

    @property
    def facts(self) -> tuple[Signed[ModelFact], ...]:
        """What is known of served and removed models; for the shell to store, see `restore`."""
        return tuple(self._store.facts())

    def view(self) -> SwarmView:
        """What placement and routing are functions of. The same object until something changed."""
        if self._view is None:
            for node in self._stale:
                self._refresh(node)
            self._stale = {}
            round_trips: dict[NodeId, float] = {}
            for node in self._order:
                peer = self._membership.peer(node)
                if peer is not None and peer.round_trip_s is not None and peer.is_live:
                    round_trips[node] = peer.round_trip_s
            self._view = SwarmView(
                self_id=self._id,
                members=tuple(self._members[node] for node in self._order),
                models=self._store.models(),
                round_trip_s=round_trips,
            )
        return self._view

    def record_of(self, node: NodeId) -> NodeRecord | None:
        """The newest record of `node`, whatever its state."""
        signed = self._store.node(node)
        return None if signed is None else signed.value

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Where to reach `node`, the one that last worked first; empty for an unknown one."""
        if node == self._id:
            return self._own.addresses
        peer = self._membership.peer(node)
        return () if peer is None else peer.reachable_at()

    def deadline(self) -> float | None:
        """When to call `fire`."""
        machines = (self._timers, self._membership, self._gossip, self._discovery)
        deadlines = [at for machine in machines if (at := machine.deadline()) is not None]
        return min(deadlines, default=None)

    # -- what happens

    def discovered(self, address: Address, node: NodeId | None, *, now: float) -> list[Effect]:
        """Somebody may listen at `address`, `node` if that is known."""
        if node == self._id or address in self._own.addresses:
            return []
        peer = None if node is None else self._membership.peer(node)
        if peer is not None and peer.is_live:
            self._membership.hint(peer.node, address)
            return []
        self._discovery.add(address, node, now)
        return self._knock(now)

    def receive(
        self, event: DatagramReceived, *, now: float, wall_ms: int | None = None
    ) -> list[Effect]:
        """A datagram came.

        Args:
            event: authenticated; the shell has checked that each `Signed` in it is signed by
                `value.node` or, with a fact, `value.stamp.writer`, and dropped what was not.
            now: the time.
            wall_ms: wall time, to refuse facts from the future; without it they are not.
        """
        sender, source, message = event.sender, event.source, event.message
        sequence = message.sequence if isinstance(message, Ack) else None
        self._discovery.answered(source, sender, sequence)
        if sender == self._id or self._is_leaving:
            return []
        effects: list[Effect] = []
        if not self._membership.heard(sender, source) and self._gossip.want((NODE, sender), source):
            effects += self._gossip.sync_with(source)
        if isinstance(message, Ping):
            effects += self._read(sender, source, message.news, now)
            effects += self._membership.ping(sender, source, message, now)
        elif isinstance(message, Ack):
            effects += self._read(sender, source, message.news, now)
            effects += self._membership.ack(sender, message, now)
        elif isinstance(message, PingRequest):
            effects += self._read(sender, source, message.news, now)
            effects += self._membership.ping_request(source, message, now)
        elif isinstance(message, Nack):
            effects += self._membership.nack(sender, message)
        elif isinstance(message, Gossip):
            effects += self._read(sender, source, message.news, now)
        elif isinstance(message, Pull):
            effects += self._gossip.pulled(source, message, now)
        elif isinstance(message, Bodies):
            effects += self._merge(sender, source, message, now, wall_ms)
        elif isinstance(message, SyncDigest):
            effects += self._gossip.digest(source, message, now)
        else:
            effects += self._synced(sender, source, message, now)
        return effects + self._settle(now)

    def receive_stream(
        self, sender: NodeId, message: StreamProbe | StreamProbeAck, *, now: float
    ) -> list[Effect]:
        """A probe, or the answer to one, came over a stream."""
        if sender == self._id or self._is_leaving:
            return []
        if isinstance(message, StreamProbe):
            return self._membership.stream_probe(sender, message)
        return self._membership.stream_probe_ack(sender, message, now) + self._settle(now)

    def fire(self, *, now: float) -> list[Effect]:
        """Do what is due."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return []
        effects: list[Effect] = []
        late_s = now - deadline
        if late_s > self._config.membership.pause_s:
            effects.append(Notify("process_paused", "warning", {"late_ms": round(late_s * 1_000)}))
            if late_s > self._config.membership.tombstone_s / 2:
                self._start_over(now)
            else:
                self._membership.resumed(late_s)
        while (key := self._timers.pop(now)) is not None:
            if key == _LOAD:
                self._publish_load(now)
            else:
                self._has_left = True
        effects += self._membership.fire(now)
        effects += self._settle(now)
        effects += self._gossip.fire(now)
        return effects + self._knock(now)

    def update_own(
        self,
        *,
        now: float,
        holdings: tuple[Holding, ...] | None = None,
        models: tuple[ModelId, ...] | None = None,
        addresses: tuple[Address, ...] | None = None,
        memory_bytes: int | None = None,
        speed_bytes_s: int | None = None,
        leaving: bool | None = None,
    ) -> list[Effect]:
        """Say something new of this node, at once; None leaves a thing as it is."""
        own = self._wish
        changed = replace(
            own,
            holdings=own.holdings if holdings is None else holdings,
            models=own.models if models is None else models,
            addresses=own.addresses if addresses is None else addresses,
            memory_bytes=own.memory_bytes if memory_bytes is None else memory_bytes,
            speed_bytes_s=own.speed_bytes_s if speed_bytes_s is None else speed_bytes_s,
            leaving=own.leaving if leaving is None else leaving,
        )
        if changed != own and not self._is_leaving:
            self._store_own(replace(changed, version=own.version + 1), now)
        return []

    def update_load(self, load: Load, *, now: float) -> list[Effect]:
        """Say how busy this node is, as often as the size of the swarm allows.

        Only the latest one counts.
        """
        self._load = load
        if load == self._load_sent:
            self._timers.cancel(_LOAD)
        elif now >= self._load_next_s:
            self._publish_load(now)
        else:
            self._timers.set(_LOAD, self._load_next_s)
        return []

    def add_model(self, spec: ModelSpec, *, wall_ms: int, now: float) -> list[Effect]:
        """Let the swarm serve `spec`.

        Raises:
            ClientError: it serves as many models as it can.
        """
        known = self._store.fact(spec.id)
        if known is not None and known.value.spec == spec:
            return []
        served = self._store.models()
        if len(served) >= MODELS_MAX and all(model.id != spec.id for model in served):
            raise ClientError(
                f"the swarm serves {len(served)} models already; remove one of them first"
            )
        return self._store_fact(spec.id, spec, wall_ms, now)

    def remove_model(self, model: ModelId, *, wall_ms: int, now: float) -> list[Effect]:
        """Let the swarm serve `model` no longer.

        Raises:
            ModelNotFoundError: it does not.
        """
        known = self._store.fact(model)
        if known is None or known.value.spec is None:
            raise ModelNotFoundError(f"the swarm does not serve {model}; see `p2pllm models`")
        return self._store_fact(model, None, wall_ms, now)

    def sign_anew(self, *, own: bool, facts: tuple[ModelId, ...], now: float) -> list[Effect]:
        """Publish what is known again, with the certificate that `sign` uses by now.

        A record does not hold longer than the certificate in it. The new stamp of a fact is just
        above its old one: whatever has been said of the model since, unseen here, still wins.

        Args:
            own: whether this node's record and load are meant.
            facts: which models' facts are; whoever wrote them.
            now: the time.
        """
        if self._is_leaving:
            return []
        if own:
            self._store_own(replace(self._wish, version=self._wish.version + 1), now)
            if self._load is not None:
                self._publish_load(now)
        effects: list[Effect] = []
        for model in facts:
            known = self._store.fact(model)
            if known is None or known.value.stamp.counter >= COUNTER_MAX:
                continue
            old = known.value.stamp
            stamp = HybridTime(old.wall_ms, old.counter + 1, self._id)
            signed = self._sign.fact(replace(known.value, stamp=stamp))
            effects += self._merge_fact(signed, now, None)
        return effects

    def restore(self, facts: Iterable[Signed[ModelFact]], *, now: float) -> list[Effect]:
        """Remember what was served when this node last ran; the shell has proven each fact."""
        effects: list[Effect] = []
        for fact in facts:
            effects += self._merge_fact(fact, now, None)
        return effects + self._settle(now)

    def leave(self, *, now: float) -> list[Effect]:
        """Say farewell: the others need not find out. Wait for `has_left` before you stop."""
        if self._is_leaving:
            return []
        self._is_leaving = True
        own = self._wish
        self._store_own(replace(own, version=own.version + 1, leaving=True), now)
        self._membership.stop()
        self._gossip.stop()
        signed = self._store.node(self._id)
        assert signed is not None
        news = News(members=(self._own_headline(),))
        farewell = Bodies(records=(signed,), news=news)
        self._timers.set(_LEAVE, now + self._config.leave_s)
        return [SendDatagram(address, farewell) for address in self.some_addresses(LEAVE_FANOUT)]

    def check(self) -> None:
        """Assert the invariants of all parts, and that they agree with each other."""
        for machine in (
            self._timers,
            self._store,
            self._membership,
            self._gossip,
            self._discovery,
        ):
            machine.check()
        for node in self._store:
            peer = self._membership.peer(node)
            if node == self._id:
                assert peer is None
            else:
                assert peer is not None
                assert peer.incarnation == self._record(node).incarnation
        assert self._own == self._record(self._id)
        assert len(self._order) == len(self._members)
        members = self.view().members
        assert [member.record.node for member in members] == sorted(self._store)

    # -- what gossip asks (`Library`)

    def headline(self, node: NodeId, now: float) -> Headline | None:
        """What is known of `node`; None where it is unknown or too long dead."""
        if node == self._id:
            return self._own_headline()
        peer = self._membership.peer(node)
        stamp = self._store.stamp(node)
        if peer is None or stamp is None or not peer.shared:
            return None
        load = self._store.load_version(node)
        if peer.suspicion is not None:
            accuser = peer.suspicion.accusers[-1]
            return Headline(node, *stamp, load, peer.state, accuser)
        if peer.is_live:
            return Headline(node, *stamp, load, peer.state)
        dead_for_s = max(0, int(now - peer.dead_since_s))
        return Headline(node, *stamp, load, peer.state, None, dead_for_s)

    def fact_headline(self, model: ModelId) -> FactHeadline | None:
        """What is known of `model`."""
        signed = self._store.fact(model)
        return None if signed is None else FactHeadline(model, signed.value.stamp)

    def body(self, key: TimerKey) -> SignedBody | None:
        """The newest body of `key`."""
        kind, name = key
        if kind == NODE:
            return self._store.node(NodeId(name))
        if kind == LOAD:
            return self._store.load(NodeId(name))
        return self._store.fact(ModelId(name))

    def some_addresses(self, count: int) -> list[Address]:
        """Of up to `count` random live peers."""
        nodes = self._membership.some(count)
        addresses = [self._membership.address_of(node) for node in nodes]
        return [address for address in addresses if address is not None]

    def size(self) -> int:
        """Live members, this node included."""
        return self._membership.size

    # -- reading

    def _read(self, sender: NodeId, source: Address, news: News, now: float) -> list[Effect]:
        """Compare headlines with what is held."""
        effects: list[Effect] = []
        corrections: list[TimerKey] = []
        for headline in news.members:
            if headline.node == self._id:
                effects += self._read_own(headline, source, now)
            else:
                effects += self._read_other(headline, sender, source, corrections, now)
        for fact in news.facts:
            known = self._store.fact(fact.model)
            if known is None or fact.stamp > known.value.stamp:
                self._gossip.want((FACT, fact.model), source)
        if corrections:
            effects += self._gossip.tell(source, corrections, now)
        return effects

    def _read_own(self, headline: Headline, source: Address, now: float) -> list[Effect]:
        if headline.stamp > self._own.stamp:
            self._gossip.want((NODE, self._id), source)
        elif headline.state is MemberState.ALIVE:
            pass
        elif headline.incarnation == self._own.incarnation:
            self._membership.was_accused()
            return self._outbid(headline.incarnation, now) + self._show_own(source, now)
        else:
            return self._show_own(source, now)
        return []

    def _show_own(self, source: Address, now: float) -> list[Effect]:
        """The body at once: whoever believes us dead would pull it anyway, if that got through."""
        return self._gossip.pulled(source, Pull(records=(self._id,)), now)

    def _read_other(
        self,
        headline: Headline,
        sender: NodeId,
        source: Address,
        corrections: list[TimerKey],
        now: float,
    ) -> list[Effect]:
        node = headline.node
        peer = self._membership.peer(node)
        if peer is None:
            self._gossip.want((NODE, node), source)
            return []
        known = self._record(node)
        if headline.stamp > known.stamp:
            self._gossip.want((NODE, node), source)
        if headline.incarnation == known.incarnation:
            if headline.load > self._store.load_version(node):
                self._gossip.want((LOAD, node), source)
            if headline.state is not MemberState.ALIVE and headline.version <= known.version:
                return self._membership.claim(headline, sender, now)
        is_stale = headline.incarnation < known.incarnation
        is_alive = headline.state is MemberState.ALIVE
        if (is_stale and not is_alive) or (
            not peer.is_live
            and peer.shared
            and (is_stale or is_alive)
            and headline.incarnation <= known.incarnation
        ):
            corrections.append((NODE, node))
        return []

    def _merge(
        self,
        sender: NodeId,
        source: Address,
        message: Bodies,
        now: float,
        wall_ms: int | None,
    ) -> list[Effect]:
        """Store what is newer."""
        effects: list[Effect] = []
        claims = {headline.node: headline for headline in message.news.members}
        for record in message.records:
            effects += self._merge_node(record, claims.get(record.value.node), sender, source, now)
        for load in message.loads:
            node = load.value.node
            self._gossip.got((LOAD, node))
            merge = Merge.KNOWN if node == self._id else self._store.merge_load(load)
            if merge is Merge.STORED:
                self._changed(node, now)
            effects += self._flag(merge, node)
        for fact in message.facts:
            effects += self._merge_fact(fact, now, wall_ms)
        return effects + self._read(sender, source, message.news, now)

    def _merge_node(
        self,
        signed: Signed[NodeRecord],
        claim: Headline | None,
        sender: NodeId,
        source: Address,
        now: float,
    ) -> list[Effect]:
        record = signed.value
        node = record.node
        self._gossip.got((NODE, node))
        if node == self._id:
            return self._merge_own(signed, now)
        peer = self._membership.peer(node)
        was_gone = peer is not None and not peer.is_live
        merge = self._store.merge_node(signed)
        if merge is not Merge.STORED:
            return self._flag(merge, node)
        effects = self._membership.learn(record, now)
        if peer is None and claim is not None and claim.state >= MemberState.DEAD:
            self._membership.entomb(claim, now)
            effects = []
        if node == sender:
            self._membership.heard(sender, source)
            if was_gone:
                effects += self._gossip.sync_with(source)
        self._changed(node, now)
        return effects

    def _merge_own(self, signed: Signed[NodeRecord], now: float) -> list[Effect]:
        """Somebody still has a record of an earlier life, or of another one with our key."""
        record = signed.value
        own = self._store.node(self._id)
        assert own is not None
        if record.stamp < own.value.stamp or signed.payload == own.payload:
            return []
        return self._outbid(record.incarnation, now)

    def _merge_fact(
        self, signed: Signed[ModelFact], now: float, wall_ms: int | None
    ) -> list[Effect]:
        model = signed.value.model
        self._gossip.got((FACT, model))
        self._make_room(model, now)
        merge = self._store.merge_fact(signed, wall_ms)
        if merge is Merge.STORED:
            self._clock.seen(signed.value.stamp)
            self._fact_changed(model, now)
        return self._flag(merge, signed.value.stamp.writer)

    def _synced(
        self, sender: NodeId, source: Address, message: SyncEntries, now: float
    ) -> list[Effect]:
        effects = self._read(sender, source, message.news, now)
        return effects + self._gossip.tell(source, self._gossip.lacking(message, now), now)

    def _flag(self, merge: Merge, node: NodeId) -> list[Effect]:
        if merge is Merge.EQUIVOCATION:
            return [Notify("equivocation_seen", "error", {"node": short(node)})]
        if merge is Merge.REFUSED:
            return [Notify("record_refused", "warning", {"node": short(node)})]
        return []

    # -- writing

    def _start_over(self, now: float) -> None:
        """This node slept while others forgot their dead: what it holds could resurrect them."""
        for address in self._membership.start_over():
            self._discovery.add(address, None, now)
        for node in [node for node in self._store if node != self._id]:
            self._gossip.announce((NODE, node), None, now)

    def _store_own(self, record: NodeRecord, now: float) -> None:
        self._wish = record
        signed = self._sign.node(record)
        while len(signed.payload) > RECORD_BYTES_MAX and (shorter := _shortened(signed.value)):
            signed = self._sign.node(shorter)
        self._own = signed.value
        merge = self._store.merge_node(signed)
        assert merge is Merge.STORED
        self._changed(self._id, now)

    def _outbid(self, incarnation: int, now: float) -> list[Effect]:
        """Take an incarnation above `incarnation`."""
        own = self._wish
        if incarnation >= INCARNATION_MAX:
            return [Notify("incarnation_exhausted", "error", {"node": short(self._id)})]
        self._store_own(replace(own, incarnation=incarnation + 1, version=own.version + 1), now)
        if self._load is not None:
            self._publish_load(now)
        return [Notify("accusation_refuted", "info", {"incarnation": incarnation + 1})]

    def _publish_load(self, now: float) -> None:
        load = self._load
        assert load is not None
        self._timers.cancel(_LOAD)
        self._load_version += 1
        signed = self._sign.load(
            LoadRecord(
                node=self._id,
                incarnation=self._own.incarnation,
                version=self._load_version,
                queue_steps=load.queue_steps,
                sessions=load.sessions,
                kv_free_bytes=load.kv_free_bytes,
                tokens_per_s=load.tokens_per_s,
            )
        )
        merge = self._store.merge_load(signed)
        assert merge is Merge.STORED
        self._load_sent = load
        stretch = max(1.0, self.size() / self._config.load_members)
        self._load_next_s = now + self._config.load_interval_s * stretch
        self._changed(self._id, now)

    def _store_fact(
        self, model: ModelId, spec: ModelSpec | None, wall_ms: int, now: float
    ) -> list[Effect]:
        self._make_room(model, now)
        signed = self._sign.fact(ModelFact(model, self._clock.tick(wall_ms), spec))
        merge = self._store.merge_fact(signed, None)
        if merge is Merge.STORED:
            self._fact_changed(model, now)
        return self._flag(merge, self._id)

    def _make_room(self, model: ModelId, now: float) -> None:
        if self._store.fact(model) is None:
            forgotten = self._store.make_room()
            if forgotten is not None:
                self._gossip.announce((FACT, forgotten), None, now)

    # -- what follows

    def _own_headline(self) -> Headline:
        state = MemberState.LEFT if self._is_leaving else MemberState.ALIVE
        return Headline(self._id, *self._own.stamp, self._store.load_version(self._id), state)

    def _news_for(self, node: NodeId | None, now: float) -> News:
        """News for a ping or ack to `node`; what is held against it first."""
        peer = None if node is None else self._membership.peer(node)
        accusation = None
        if peer is not None and peer.state is not MemberState.ALIVE:
            accusation = self.headline(peer.node, now)
        return self._gossip.take(accusation, now)

    def _knock(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for seed in self._discovery.due(now, alone=self.size() == 1):
            self._sequence += 1
            seed.sequence = self._sequence
            ping = Ping(self._sequence, seed.node, News(members=(self._own_headline(),)))
            effects.append(SendDatagram(seed.address, ping))
        return effects

    def _changed(self, node: NodeId, now: float) -> None:
        """The record, load or state of `node` changed."""
        self._touch(node)
        headline = self.headline(node, now)
        version = None
        if headline is not None:
            state = max(headline.state, MemberState.SUSPECT)
            version = f"{headline.incarnation} {headline.version} {headline.load} {state}"
        self._gossip.announce((NODE, node), version, now)

    def _fact_changed(self, model: ModelId, now: float) -> None:
        signed = self._store.fact(model)
        assert signed is not None
        stamp = signed.value.stamp
        version = f"{stamp.wall_ms} {stamp.counter} {stamp.writer}"
        self._gossip.announce((FACT, model), version, now)
        self._view = None
        self._revision += 1

    def _touch(self, node: NodeId) -> None:
        self._stale[node] = None
        self._view = None
        self._revision += 1

    def _settle(self, now: float) -> list[Effect]:
        """Spread what `Membership` found out, and pull what is wanted."""
        for node in self._membership.drain_changes():
            self._changed(node, now)
        if self._membership.drain_measured():
            self._view = None
            self._revision += 1
        for node in self._membership.drain_forgotten():
            self._store.forget(node)
            self._touch(node)
        self._gossip.wake(now)
        return self._gossip.ask(now)

    def _refresh(self, node: NodeId) -> None:
        signed = self._store.node(node)
        if signed is None:
            # It may have been learnt and forgotten between two views.
            if self._members.pop(node, None) is not None:
                self._order.remove(node)
            return
        if node not in self._members:
            insort(self._order, node)
        load = self._store.load(node)
        state = MemberState.ALIVE if node == self._id else self._membership.state(node)
        self._members[node] = Member(signed.value, state, None if load is None else load.value)

    def _record(self, node: NodeId) -> NodeRecord:
        signed = self._store.node(node)
        assert signed is not None
        return signed.value
