"""Worlds of bare swarms: membership, records and gossip, without models, engines or sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, cast

from p2pllm.core.effects import Effect
from p2pllm.core.events import DatagramReceived, Event, StreamReceived, TimerFired
from p2pllm.core.gossip import HEADER_BYTES, estimated_size
from p2pllm.core.swarm import Swarm, SwarmConfig
from p2pllm.domain.gossip import (
    DATAGRAM_BYTES_MAX,
    SEAL_BYTES,
    Bodies,
    FactHeadline,
    GossipMessage,
    Headline,
    News,
    Pull,
    Signed,
    SyncDigest,
    SyncEntries,
)
from p2pllm.domain.ids import NodeId
from p2pllm.domain.messages import StreamProbe, StreamProbeAck
from p2pllm.domain.records import Address, LoadRecord, MemberState, ModelFact, NodeRecord
from sim.network import Link
from sim.world import Host, World

T = TypeVar("T")

SIGNATURE_BYTES = 64
CERTIFICATE_BYTES = 300

WALL_MS = 1_800_000_000_000
"""What wall clocks say when a world begins."""


def node_id(number: int) -> NodeId:
    """The id of the machine with this number; spread like the hashes that real ids are."""
    return NodeId(hashlib.sha256(f"node {number}".encode()).hexdigest()[:32])


def address_of(number: int) -> Address:
    """Where the machine with this number listens."""
    return Address(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 4_000)


class PlainSigner:
    """Signs nothing, but makes payloads, signatures and certificates of about the real size."""

    def node(self, record: NodeRecord) -> Signed[NodeRecord]:
        """As `Sign.node`."""
        return _signed(record, CERTIFICATE_BYTES)

    def load(self, record: LoadRecord) -> Signed[LoadRecord]:
        """As `Sign.load`."""
        return _signed(record, 0)

    def fact(self, fact: ModelFact) -> Signed[ModelFact]:
        """As `Sign.fact`."""
        return _signed(fact, CERTIFICATE_BYTES)


class SwarmMachine:
    """A `Swarm` under the contract of core machines."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Pass `event` on."""
        if isinstance(event, DatagramReceived):
            return self.swarm.receive(event, now=now, wall_ms=WALL_MS + int(now * 1_000))
        if isinstance(event, TimerFired):
            return self.swarm.fire(now=now)
        if isinstance(event, StreamReceived) and isinstance(
            event.message, StreamProbe | StreamProbeAck
        ):
            return self.swarm.receive_stream(event.sender, event.message, now=now)
        return []

    def deadline(self) -> float | None:
        """As `Swarm.deadline`."""
        return self.swarm.deadline()

    def check(self) -> None:
        """As `Swarm.check`."""
        self.swarm.check()


@dataclass(frozen=True, slots=True)
class Options:
    """What a world of swarms is like; see `World`."""

    link: Link = field(default_factory=Link)
    config: SwarmConfig = field(default_factory=SwarmConfig)
    checks: bool = False
    traces: bool = False


class SwarmWorld:
    """N machines, each with a bare swarm.

    Args:
        size: how many hosts; none is switched on yet.
        seed: decides everything.
        options: see there.
    """

    def __init__(self, size: int, seed: int, options: Options | None = None) -> None:
        self.options = options or Options()
        self.world: World[SwarmMachine] = World(
            seed,
            link=self.options.link,
            checks=self.options.checks,
            traces=self.options.traces,
            size_of=datagram_size,
        )
        self.hosts = [self.world.add(node_id(i), address_of(i)) for i in range(size)]
        # As a real node's disk: the last incarnation of each host.
        self.stored: dict[int, int] = {}

    def start(self, number: int, *, seeds: tuple[int, ...] = (0,), forgets: bool = False) -> None:
        """Switch a host on and name it some others.

        Args:
            number: which.
            seeds: others it is told of.
            forgets: whether its incarnation was lost, as with a torn state file.
        """
        host = self.hosts[number]
        incarnation = 1 if forgets else self.stored.get(number, 0) + 1
        self.stored[number] = incarnation
        swarm = Swarm(
            own_record(number, incarnation),
            config=self.options.config,
            sign=PlainSigner(),
            random=self.world.random(f"swarm {number} {incarnation} {host.life}"),
            now=self.world.now,
        )
        self.world.start(host, SwarmMachine(swarm))
        for seed in seeds:
            if seed != number:
                address = self.hosts[seed].address
                self.act(number, lambda swarm, at=address: swarm.discovered(at, None, now=self.now))

    def start_all(self, *, over_s: float = 0.0) -> None:
        """Switch all on, evenly over some time; each is told of the first one."""
        for number in range(len(self.hosts)):
            at = over_s * number / len(self.hosts)
            self.world.at(at, lambda number=number: self.start(number))
        self.world.run(over_s)

    def crash(self, number: int) -> None:
        """Switch a host off without a word."""
        self.stored[number] = self.swarm(number).incarnation
        self.world.crash(self.hosts[number])

    def act(self, number: int, action: Callable[[Swarm], list[Effect]]) -> None:
        """Call the swarm of a host."""
        self.world.act(self.hosts[number], lambda machine: action(machine.swarm))

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return self.world.now

    def swarm(self, number: int) -> Swarm:
        """The swarm of a host that is on."""
        machine = self.hosts[number].machine
        assert machine is not None
        return machine.swarm

    def running(self) -> list[Host[SwarmMachine]]:
        """Hosts that are on."""
        return [host for host in self.hosts if host.machine is not None]

    def state(self, observer: int, subject: int) -> MemberState | None:
        """What one host believes of another; None where it does not know it."""
        return {
            member.record.node: member.state for member in self.swarm(observer).view().members
        }.get(node_id(subject))

    def agree(self) -> bool:
        """Whether every host that is on believes just those alive, with their newest records."""
        newest = {
            host.node: (host.machine.swarm.own, host.machine.swarm.own_load)
            for host in self.running()
            if host.machine is not None
        }
        for host in self.running():
            assert host.machine is not None
            view = host.machine.swarm.view()
            alive = {
                member.record.node: (member.record, member.load)
                for member in view.members
                if member.state is MemberState.ALIVE
            }
            if alive != newest:
                return False
            if any(member.state is MemberState.SUSPECT for member in view.members):
                return False
        return True


def own_record(number: int, incarnation: int) -> NodeRecord:
    """What a simulated machine says of itself at first."""
    return NodeRecord(
        node=node_id(number),
        incarnation=incarnation,
        version=1,
        name=f"m{number}",
        addresses=(address_of(number),),
        api=None,
        memory_bytes=8 * 2**30,
        layers_max=None,
        parameter_bytes=2,
        speed_bytes_s=20_000_000_000,
    )


def datagram_size(message: GossipMessage) -> int:
    """About how many bytes `message` takes once it is sealed; asserts that a datagram may be so."""
    size = SEAL_BYTES + HEADER_BYTES + _content_size(message)
    assert size <= DATAGRAM_BYTES_MAX, f"{size} bytes: {message}"
    return size


def _content_size(message: GossipMessage) -> int:
    if isinstance(message, SyncDigest):
        return len(message.hashes)
    if isinstance(message, Pull):
        return sum(len(name) + 2 for name in (*message.records, *message.loads, *message.facts))
    size = 0
    if isinstance(message, Bodies):
        items = (*message.records, *message.loads, *message.facts)
        size += sum(estimated_size(item) for item in items)
    if isinstance(message, SyncEntries):
        size += len(message.buckets)
    news = getattr(message, "news", None)
    if isinstance(news, News):
        headlines: tuple[Headline | FactHeadline, ...] = (*news.members, *news.facts)
        size += sum(estimated_size(item) for item in headlines)
    return size


def _signed(value: T, certificate_bytes: int) -> Signed[T]:
    payload = "|".join(_flat(value)).encode()
    return Signed(value, payload, bytes(SIGNATURE_BYTES), bytes(certificate_bytes))


def _flat(value: object) -> list[str]:
    """The leaves of a value: about as long as its encoding."""
    if is_dataclass(value):
        return [text for item in fields(value) for text in _flat(getattr(value, item.name))]
    if isinstance(value, tuple):
        return [text for item in cast("tuple[Any, ...]", value) for text in _flat(item)]
    return [str(value)]
