"""A member gets its next certificate by itself; real TLS over loopback, clocks that are told."""

from __future__ import annotations

import contextlib
import random
import secrets
import socket
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from p2pllm.app.renewal import (
    ASKED_MAX,
    CHECK_INTERVAL_S,
    FACT_MARGIN,
    RETRY_S,
    WARNING_MARGIN,
    Renewal,
)
from p2pllm.core.events import CertificatesAged, Event
from p2pllm.domain.enrolment import DatagramKey
from p2pllm.domain.errors import AuthenticationError, ConfigurationError
from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.messages import Hello
from p2pllm.domain.records import Address, HybridTime, ModelFact
from p2pllm.net.sockets import bind_stream
from p2pllm.net.streams import PeerStreams
from p2pllm.security.authority import CERTIFICATE_LIFETIME, SwarmAuthority
from p2pllm.security.certificates import read_certificate
from p2pllm.security.enrolment import EnrolmentServer
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.invites import InviteBook
from p2pllm.security.membership import RENEWAL_MARGIN, Membership, load_membership
from p2pllm.security.tls import client_context, identify, server_context

HOST = "127.0.0.1"
KEY = DatagramKey(1, bytes(32))
DAY = timedelta(days=1)
# TLS looks at the real clock, so certificates that shall pass there are made by it.
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass
class Door:
    """A member that listens; with the authority it grants.

    Attributes:
        asked: as whom it was asked, in order; None for strangers.
    """

    streams: PeerStreams
    asked: list[NodeId | None]

    @property
    def address(self) -> Address:
        return Address(HOST, self.streams.port)


@dataclass
class World:
    """A swarm, and one member of it whose certificate ends soon."""

    folder: Path
    lifetime: timedelta = RENEWAL_MARGIN / 2
    authority: SwarmAuthority = field(default_factory=lambda: SwarmAuthority.generate(now=NOW))

    def __post_init__(self) -> None:
        self.identity = NodeIdentity.generate()
        self.membership = self.member(self.identity, self.lifetime)
        self.members: list[tuple[Address, ...]] = []
        self.facts: list[Signed[ModelFact]] = []
        self.adopted: list[Membership] = []
        self.events: list[Event] = []

    def member(
        self, identity: NodeIdentity, lifetime: timedelta = CERTIFICATE_LIFETIME
    ) -> Membership:
        certificate = self.authority.issue(identity.public_key, now=NOW, lifetime=lifetime)
        return Membership(self.authority.certificate.der, certificate, (KEY,), boot_epoch=7)

    def renewal(self, **changes: Any) -> Renewal:
        arguments: dict[str, Any] = {
            "authority": None,
            "members": lambda: self.members,
            "facts": lambda: self.facts,
            "adopt": self.adopted.append,
            "post": self.events.append,
            "random": random.Random(1),
            "now": lambda: NOW,
        }
        return Renewal(
            self.folder, self.identity, "laptop", self.membership, **(arguments | changes)
        )

    @contextlib.asynccontextmanager
    async def door(
        self, *, grants: bool = True, lifetime: timedelta = CERTIFICATE_LIFETIME
    ) -> AsyncGenerator[Door, None]:
        """Another member, listening."""
        identity = NodeIdentity.generate()
        membership = self.member(identity)
        asked: list[NodeId | None] = []

        def exchange(certificate: bytes, member: NodeId | None) -> EnrolmentServer:
            asked.append(member)
            return EnrolmentServer(
                authority=self.authority if lifetime is CERTIFICATE_LIFETIME else Short(self),
                invites=InviteBook(self.folder),
                keys=(KEY,),
                peers=(Address(HOST, 1),),
                is_open=False,
                certificate=certificate,
                random_bytes=secrets.token_bytes,
                now=lambda: NOW,
                member=member,
            )

        tls = (identity, membership.certificate, membership.authority, self.folder)
        streams = PeerStreams(
            Hello(1, 1, identity.node_id, membership.swarm, "test"),
            listener=bind_stream(HOST, 0),
            server_context=server_context(*tls),
            client_context=client_context(*tls),
            own_certificate=membership.certificate,
            identify=identify,
            on_message=lambda _sender, _message: None,
            on_unreachable=lambda _node, _detail: None,
            enrolment=exchange if grants else None,
        )
        async with streams:
            yield Door(streams, asked)


class Short(SwarmAuthority):
    """Issues certificates that end before those they are to replace."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.certificate = world.authority.certificate

    def issue(self, public_key: bytes, *, now: datetime, lifetime: timedelta = DAY) -> bytes:
        return self._world.authority.issue(public_key, now=now, lifetime=lifetime)


def free_address() -> Address:
    """Where nobody listens."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return Address(HOST, probe.getsockname()[1])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_certificate_that_ends_soon_is_renewed_by_whoever_can(world: World) -> None:
    renewal = world.renewal()
    async with world.door(grants=False) as bystander, world.door() as holder:
        world.members = [(free_address(),), (bystander.address,), (holder.address,)]
        assert await renewal.check()
        assert holder.asked == [world.identity.node_id]
    renewed = renewal.membership
    assert renewed.expires == NOW + CERTIFICATE_LIFETIME
    assert read_certificate(renewed.certificate).node == world.identity.node_id
    assert world.adopted == [renewed]
    assert world.events == [CertificatesAged(own=True)]


async def test_what_was_granted_is_on_the_disk_with_the_epoch_of_this_start(world: World) -> None:
    async with world.door() as holder:
        world.members = [(holder.address,)]
        await world.renewal().check()
    loaded = load_membership(world.folder, world.identity)
    assert loaded == world.adopted[0]
    assert loaded.boot_epoch == world.membership.boot_epoch
    assert loaded.peers == (Address(HOST, 1),)


async def test_a_certificate_with_time_left_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path, lifetime=CERTIFICATE_LIFETIME)
    async with world.door() as holder:
        world.members = [(holder.address,)]
        assert await world.renewal().check()
        assert holder.asked == []
        late = NOW + CERTIFICATE_LIFETIME - RENEWAL_MARGIN
        await world.renewal(now=lambda: late - DAY).check()
        assert holder.asked == []
        await world.renewal(now=lambda: late).check()
        assert holder.asked == [world.identity.node_id]


async def test_who_let_this_node_in_is_asked_first(world: World) -> None:
    async with world.door() as holder, world.door() as other:
        world.membership = replace(world.membership, peers=(holder.address,))
        world.members = [(other.address,)]
        await world.renewal().check()
        assert (len(holder.asked), len(other.asked)) == (1, 0)


async def test_the_further_addresses_of_a_member_are_tried(world: World) -> None:
    async with world.door() as holder:
        world.members = [(free_address(), holder.address)]
        assert await world.renewal().check()


async def test_who_holds_the_authority_asks_nobody(world: World) -> None:
    renewal = world.renewal(authority=world.authority)
    assert await renewal.check()
    assert renewal.membership.expires == NOW + CERTIFICATE_LIFETIME
    assert load_membership(world.folder, world.identity) == renewal.membership
    assert world.events == [CertificatesAged(own=True)]


async def test_a_certificate_that_is_no_newer_proves_nothing(world: World) -> None:
    renewal = world.renewal()
    async with world.door(lifetime=DAY) as liar:
        world.members = [(liar.address,)]
        with structlog.testing.capture_logs() as logs:
            assert not await renewal.check()
        assert liar.asked
    assert "no newer" in logs[0]["detail"]
    assert renewal.membership == world.membership
    assert world.adopted == []
    assert load_membership(world.folder, world.identity) is None


async def test_a_stranger_cannot_take_the_way_of_members(world: World, tmp_path: Path) -> None:
    """A certificate of its own making does not even reach the exchange."""
    other = World(tmp_path)
    stranger = replace(world.member(other.identity), certificate=other.membership.certificate)
    async with world.door() as holder:
        renewal = Renewal(
            tmp_path,
            other.identity,
            "stranger",
            stranger,
            authority=None,
            members=lambda: [(holder.address,)],
            facts=lambda: [],
            adopt=other.adopted.append,
            post=other.events.append,
            random=random.Random(1),
            now=lambda: NOW,
        )
        assert not await renewal.check()
        assert holder.asked == []
    assert other.adopted == []


async def test_nobody_renews_for_another_key(world: World) -> None:
    """The certificate shown is this node's, the key to be certified another one's."""
    renewal = world.renewal()
    other = NodeIdentity.generate()
    async with world.door() as holder:
        world.members = [(holder.address,)]
        shown = client_context(
            world.identity, world.membership.certificate, world.membership.authority, world.folder
        )
        renewal._identity = other
        with pytest.raises(AuthenticationError, match="an invite is needed"):
            await renewal._ask_one(holder.address, shown)
        assert holder.asked == [world.identity.node_id]


@pytest.mark.parametrize(
    ("left", "event", "level"),
    [
        (WARNING_MARGIN + DAY, "renewal_postponed", "info"),
        (WARNING_MARGIN - DAY, "membership_expires_soon", "warning"),
        (-DAY, "membership_expired", "error"),
    ],
)
async def test_the_less_time_is_left_the_louder_a_failure_is(
    world: World, left: timedelta, event: str, level: str
) -> None:
    async with world.door(grants=False) as bystander:
        world.members = [(bystander.address,)] * 2
        with structlog.testing.capture_logs() as logs:
            assert not await world.renewal(now=lambda: world.membership.expires - left).check()
    (line,) = (line for line in logs if line["log_level"] != "debug")
    assert (line["event"], line["log_level"]) == (event, level)
    assert "none of 2 members" in line["detail"]
    assert world.events == []


async def test_a_full_disk_is_a_failure_like_others(world: World) -> None:
    renewal = world.renewal(authority=world.authority)
    world.folder.joinpath("membership.json").mkdir()
    assert not await renewal.check()
    assert world.adopted == []


async def test_one_round_asks_so_many_members_at_most(world: World) -> None:
    asked: list[Address] = []

    async def ask(address: Address, _context: object) -> Membership:
        asked.append(address)
        raise ConfigurationError("not there")

    renewal = world.renewal()
    renewal._ask_one = ask  # type: ignore[method-assign, assignment]
    world.members = [(Address(HOST, port),) for port in range(1, 1_000)]
    await renewal.check()
    await renewal.check()
    assert len(asked) == 2 * ASKED_MAX
    assert asked[:ASKED_MAX] != asked[ASKED_MAX:]


def test_rounds_that_fail_are_repeated_ever_more_slowly(world: World) -> None:
    renewal = world.renewal()
    longest = [RETRY_S * 2**round for round in range(8)]
    for failures, expected in enumerate((CHECK_INTERVAL_S, *longest)):
        assert expected / 2 <= renewal.delay_s(failures) <= expected
    assert renewal.delay_s(10_000) <= CHECK_INTERVAL_S


def fact(world: World, writer: NodeIdentity, end: datetime, model: str) -> Signed[ModelFact]:
    certificate = world.authority.issue(writer.public_key, now=NOW, lifetime=end - NOW)
    value = ModelFact(ModelId(model), HybridTime(1, 0, writer.node_id), None)
    return Signed(value, b"", b"", certificate)


async def test_facts_are_stated_anew_before_their_proof_ends(tmp_path: Path) -> None:
    world = World(tmp_path, lifetime=CERTIFICATE_LIFETIME)
    gone, soon = NodeIdentity.generate(), NOW + FACT_MARGIN
    world.facts = [
        fact(world, gone, soon - DAY, "gone/ending"),
        fact(world, gone, soon + DAY, "gone/fresh"),
        fact(world, world.identity, soon + DAY, "own/older"),
        fact(world, world.identity, NOW + CERTIFICATE_LIFETIME, "own/newest"),
    ]
    assert await world.renewal().check()
    ageing = (ModelId("gone/ending"), ModelId("own/older"))
    assert world.events == [CertificatesAged(own=False, facts=ageing)]


async def test_a_fact_that_outlives_this_nodes_certificate_is_left_to_others(world: World) -> None:
    end = world.membership.expires
    gone = NodeIdentity.generate()
    world.facts = [fact(world, gone, end, "gone/ending")]
    later: Callable[[], datetime] = lambda: end - DAY  # noqa: E731
    assert not await world.renewal(now=later).check()
    assert world.events == []
