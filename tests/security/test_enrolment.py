from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from p2pllm.domain.enrolment import (
    EnrolGrant,
    EnrolmentMessage,
    EnrolOffer,
    EnrolProof,
    EnrolRefusal,
    EnrolRequest,
)
from p2pllm.domain.errors import (
    AuthenticationError,
    ConfigurationError,
    InviteError,
    P2PLLMError,
    RemoteProtocolError,
)
from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.domain.records import Address
from p2pllm.security import storage
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.datagrams import DatagramSealer
from p2pllm.security.enrolment import (
    EnrolmentClient,
    EnrolmentServer,
    found_swarm,
)
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.invites import Invite, InviteBook
from p2pllm.security.tls import server_context, stranger_context
from tests.security.material import ADDRESS, DAY, KEY, NOW, OLDER_KEY, TlsPair, authority, member


def noon() -> datetime:
    return NOW


@dataclass
class World:
    """A swarm of one member, and a joiner before its door."""

    folder: Path
    swarm: SwarmAuthority = field(default_factory=authority)
    is_open: bool = False
    now: Callable[[], datetime] = noon

    def __post_init__(self) -> None:
        self.book = InviteBook(self.folder)
        _, self.certificate = member(self.swarm)
        self.joiner = NodeIdentity.generate()
        self.sent: list[EnrolmentMessage] = []

    def invite(self, **kwargs: Any) -> Invite:
        return Invite(self.swarm.swarm, self.book.create(now=NOW, **kwargs))

    def server(self, **changes: Any) -> EnrolmentServer:
        arguments: dict[str, Any] = {
            "authority": self.swarm,
            "invites": self.book,
            "keys": (KEY, OLDER_KEY),
            "peers": (ADDRESS,),
            "is_open": self.is_open,
            "certificate": self.certificate,
            "random_bytes": random.Random(5).randbytes,
            "now": self.now,
        }
        return EnrolmentServer(**(arguments | changes))

    def client(self, invite: Invite | None, **changes: Any) -> EnrolmentClient:
        arguments: dict[str, Any] = {
            "invite": invite,
            "identity": self.joiner,
            "name": "laptop",
            "server_certificate": self.certificate,
            "now": noon,
        }
        return EnrolmentClient(**(arguments | changes))

    def run(self, client: EnrolmentClient, server: EnrolmentServer) -> None:
        """Carry messages to and fro until both have nothing to say."""
        to_server: list[EnrolmentMessage] = [client.start()]
        while to_server:
            self.sent += to_server
            to_client = [answer for message in to_server for answer in server.receive(message)]
            to_server = [answer for message in to_client for answer in client.receive(message)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_invited_stranger_becomes_a_member(world: World) -> None:
    client, server = world.client(world.invite()), world.server()
    world.run(client, server)
    assert client.finished
    assert server.finished
    assert server.admitted == (world.joiner.node_id, "laptop")
    membership = client.result
    assert membership is not None
    assert membership.swarm == world.swarm.swarm
    assert membership.keys == (KEY, OLDER_KEY)
    assert membership.peers == (ADDRESS,)
    proven = world.swarm.certificate.verify(membership.certificate, NOW)
    assert proven.node == world.joiner.node_id
    assert membership.expires == NOW + 30 * DAY


def test_a_grant_lost_on_the_way_is_granted_again(world: World) -> None:
    invite = world.invite()
    lost = world.server()
    client = world.client(invite)
    (offer,) = lost.receive(client.start())
    (proof,) = client.receive(offer)
    lost.receive(proof)  # and the joiner crashes before it arrives
    again = world.client(invite)
    world.run(again, world.server())
    assert again.result is not None


def test_one_invite_does_not_let_two_nodes_in(world: World) -> None:
    invite = world.invite()
    world.run(world.client(invite), world.server())
    second, server = world.client(invite, identity=NodeIdentity.generate()), world.server()
    with pytest.raises(InviteError, match="used up") as caught:
        world.run(second, server)
    assert caught.value.code == "invite_used_up"
    assert second.result is None
    assert server.admitted is None
    assert server.finished


def test_an_expired_invite_is_refused(world: World) -> None:
    client = world.client(world.invite(lifetime=timedelta(minutes=5)))
    with pytest.raises(InviteError, match="expired") as caught:
        world.run(client, world.server(now=lambda: NOW + timedelta(minutes=5)))
    assert caught.value.code == "invite_expired"


def test_a_made_up_secret_is_refused(world: World) -> None:
    world.invite()
    with pytest.raises(InviteError, match="not known") as caught:
        world.run(world.client(Invite(world.swarm.swarm, bytes(16))), world.server())
    assert caught.value.code == "invite_unknown"


def test_a_man_in_the_middle_with_his_own_authority_never_sees_the_secret(
    world: World, tmp_path: Path
) -> None:
    invite = world.invite()
    rogue = World(tmp_path / "rogue")
    client = world.client(invite, server_certificate=rogue.certificate)
    with pytest.raises(InviteError, match="another swarm") as caught:
        world.run(client, rogue.server())
    assert caught.value.code == "invite_other_swarm"
    assert world.sent == [EnrolRequest(1)]
    assert client.finished


def test_a_man_in_the_middle_who_shows_the_real_authority_never_sees_the_secret(
    world: World, tmp_path: Path
) -> None:
    rogue = World(tmp_path / "rogue")
    self_made = SwarmAuthority(rogue.joiner._private_key, world.swarm.certificate)
    forged = self_made.issue(rogue.joiner.public_key, now=NOW)
    for shown in (rogue.certificate, forged, b"", world.swarm.certificate.der):
        client = world.client(world.invite(), server_certificate=shown)
        with pytest.raises(AuthenticationError, match="not a member of the swarm it names"):
            world.run(client, world.server())
    assert set(map(type, world.sent)) == {EnrolRequest}


def test_an_expired_member_never_sees_the_secret(world: World) -> None:
    _, old = member(world.swarm, now=NOW - 31 * DAY)
    with pytest.raises(AuthenticationError, match="expired"):
        world.run(world.client(world.invite(), server_certificate=old), world.server())
    assert world.sent == [EnrolRequest(1)]


def test_a_relay_between_two_tls_streams_never_sees_the_secret(tmp_path: Path) -> None:
    """The real thing: what the joiner checks is what TLS showed it."""
    now = datetime.now(UTC)  # OpenSSL reads the real clock
    world = World(tmp_path / "data", SwarmAuthority.generate(now=now), now=lambda: now)
    rogue = SwarmAuthority.generate(now=now)
    invite = Invite(world.swarm.swarm, world.book.create(now=now))

    def enrol(identity: NodeIdentity, certificate: bytes, trusted: SwarmAuthority) -> None:
        context = server_context(identity, certificate, trusted.certificate.der, tmp_path / "data")
        pair = TlsPair(stranger_context(), context)
        pair.handshake()
        shown = pair.client.getpeercert(binary_form=True) or b""
        client = world.client(invite, server_certificate=shown, now=lambda: now)
        world.run(client, world.server(certificate=certificate))
        assert client.result is not None

    relay, relay_certificate = member(rogue, now=now)
    with pytest.raises(AuthenticationError, match="not a member of the swarm it names"):
        enrol(relay, relay_certificate, rogue)
    assert world.sent == [EnrolRequest(1)]
    with pytest.raises(ConfigurationError):  # nobody can show a certificate without its key
        enrol(relay, member(world.swarm, now=now)[1], rogue)
    enrol(*member(world.swarm, now=now), world.swarm)


def test_a_proof_carried_to_another_stream_is_refused(world: World) -> None:
    client = world.client(world.invite())
    (offer,) = world.server().receive(client.start())
    (proof,) = client.receive(offer)
    _, other_certificate = member(world.swarm)
    for other in (
        world.server(random_bytes=random.Random(6).randbytes),
        world.server(certificate=other_certificate),
    ):
        other.receive(EnrolRequest(1))
        (answer,) = other.receive(proof)
        assert isinstance(answer, EnrolRefusal)
        assert answer.code == "proof"
        assert other.admitted is None


@pytest.mark.parametrize(
    "change",
    [
        {"public_key": bytes(32)},
        {"public_key": bytes(31)},
        {"public_key": b""},
        {"signature": bytes(64)},
        {"signature": b""},
        {"name": "other"},
    ],
)
def test_a_proof_that_does_not_hold_is_refused_and_uses_no_invite(
    world: World, change: dict[str, Any]
) -> None:
    invite = world.invite()
    client, server = world.client(invite), world.server()
    (offer,) = server.receive(client.start())
    (proof,) = client.receive(offer)
    assert isinstance(proof, EnrolProof)
    (answer,) = server.receive(replace(proof, **change))
    assert isinstance(answer, EnrolRefusal)
    assert answer.code == "proof"
    world.book.redeem(invite.secret, NodeId("c" * 32), NOW)


@pytest.mark.parametrize("name", ["", "  ", "\x1b[31m", "a\nb", "x" * 33, "é" * 17, "\ud800"])
def test_a_name_that_is_none_is_refused_on_both_sides(world: World, name: str) -> None:
    with pytest.raises(ValueError, match="a name has"):
        world.client(world.invite(), name=name)
    client, server = world.client(world.invite()), world.server()
    (offer,) = server.receive(client.start())
    (proof,) = client.receive(offer)
    assert isinstance(proof, EnrolProof)
    (answer,) = server.receive(replace(proof, name=name))
    assert isinstance(answer, EnrolRefusal)
    assert answer.code == "name"


def test_without_an_invite_nobody_gets_into_a_closed_swarm(world: World) -> None:
    with pytest.raises(InviteError, match="p2pllm invite") as caught:
        world.run(world.client(None), world.server())
    assert caught.value.code == "invite_needed"
    server = world.server()
    client = world.client(None)
    (offer,) = server.receive(client.start())
    assert isinstance(offer, EnrolOffer)
    (proof,) = client_that_believes_it_is_open(world, offer)
    (answer,) = server.receive(proof)
    assert isinstance(answer, EnrolRefusal)
    assert answer.code == "invite_needed"


def client_that_believes_it_is_open(world: World, offer: EnrolOffer) -> list[EnrolmentMessage]:
    client = world.client(None)
    client.start()
    return client.receive(replace(offer, is_open=True))


def test_anybody_gets_into_an_open_swarm(tmp_path: Path) -> None:
    world = World(tmp_path, is_open=True)
    client = world.client(None)
    world.run(client, world.server())
    assert client.result is not None
    assert client.result.swarm == world.swarm.swarm


def test_an_invite_to_an_open_swarm_is_still_for_that_swarm_only(tmp_path: Path) -> None:
    world = World(tmp_path, is_open=True)
    foreign = Invite(SwarmId("0" * 64), bytes(16))
    with pytest.raises(InviteError, match="another swarm"):
        world.run(world.client(foreign), world.server())


def test_a_member_renews_without_an_invite(world: World) -> None:
    client = world.client(None, renewing=world.swarm.swarm)
    later = NOW + 20 * DAY
    server = world.server(member=world.joiner.node_id, now=lambda: later)
    with pytest.raises(AuthenticationError, match="holds from"):
        world.run(client, server)  # the member's clock is twenty days early
    client = world.client(None, renewing=world.swarm.swarm, now=lambda: later)
    world.run(client, world.server(member=world.joiner.node_id, now=lambda: later))
    assert client.result is not None
    assert client.result.expires == later + 30 * DAY


def test_a_member_renews_for_itself_only(world: World) -> None:
    client = world.client(None, renewing=world.swarm.swarm)
    with pytest.raises(AuthenticationError, match="invite is needed") as caught:
        world.run(client, world.server(member=NodeId("c" * 32)))
    assert not isinstance(caught.value, InviteError)


def test_a_member_does_not_renew_in_another_swarm(world: World) -> None:
    client = world.client(None, renewing=SwarmId("0" * 64))
    with pytest.raises(AuthenticationError, match="of another swarm"):
        world.run(client, world.server(member=world.joiner.node_id))


def test_an_invite_and_a_renewal_exclude_each_other(world: World) -> None:
    with pytest.raises(ValueError, match="without an invite"):
        world.client(world.invite(), renewing=world.swarm.swarm)


def test_another_version_is_refused(world: World) -> None:
    server = world.server()
    (answer,) = server.receive(EnrolRequest(2))
    assert isinstance(answer, EnrolRefusal)
    assert server.finished


def test_a_full_disk_refuses_without_naming_files(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = world.client(world.invite()), world.server()

    def full(*_: object) -> None:
        raise ConfigurationError("cannot write /home/somebody/secret-place")

    monkeypatch.setattr(storage, "write_private_json", full)
    with pytest.raises(InviteError, match="try later") as caught:
        world.run(client, server)
    assert caught.value.code == "unavailable"
    assert "somebody" not in str(caught.value)


def test_a_refusal_cannot_paint_the_joiners_terminal(world: World) -> None:
    client = world.client(world.invite())
    client.start()
    with pytest.raises(InviteError) as caught:
        client.receive(EnrolRefusal("\x1b[2J", "no\x1b[2J\r\nway"))
    assert str(caught.value) == "the swarm refused: no[2Jway"
    assert caught.value.code == "refused"


GRANT = EnrolGrant(b"", (KEY,), ())
PROOF = EnrolProof(bytes(32), b"", bytes(64), "x")
OFFER = EnrolOffer(b"", bytes(32), False)


@pytest.mark.parametrize("message", [EnrolRequest(1), PROOF, GRANT])
def test_a_server_that_speaks_out_of_turn_is_cut_off(
    world: World, message: EnrolmentMessage
) -> None:
    client = world.client(world.invite())
    client.start()
    with pytest.raises(RemoteProtocolError):
        client.receive(message)
    assert client.finished
    (offer,) = world.server().receive(EnrolRequest(1))
    with pytest.raises(RemoteProtocolError):
        client.receive(offer)


@pytest.mark.parametrize("message", [PROOF, GRANT, OFFER, EnrolRefusal("busy", "later")])
def test_a_joiner_that_speaks_out_of_turn_is_cut_off(
    world: World, message: EnrolmentMessage
) -> None:
    server = world.server()
    with pytest.raises(RemoteProtocolError):
        server.receive(message)
    assert server.finished
    with pytest.raises(RemoteProtocolError):
        server.receive(EnrolRequest(1))


def test_one_stream_has_one_try(world: World) -> None:
    server = world.server()
    server.receive(EnrolRequest(1))
    server.receive(PROOF)
    with pytest.raises(RemoteProtocolError):
        server.receive(PROOF)


def test_a_short_challenge_is_not_signed(world: World) -> None:
    client = world.client(world.invite())
    client.start()
    with pytest.raises(RemoteProtocolError, match="challenge"):
        client.receive(EnrolOffer(world.swarm.certificate.der, b"", False))


def test_an_authority_that_is_none_is_refused(world: World) -> None:
    client = world.client(world.invite())
    client.start()
    with pytest.raises(AuthenticationError):
        client.receive(EnrolOffer(b"nonsense", bytes(32), False))


def test_a_grant_must_be_the_joiners_own_and_whole(world: World) -> None:
    _, others = member(world.swarm)
    own = world.swarm.issue(world.joiner.public_key, now=NOW)
    _, foreign = member(authority())
    for grant in (
        EnrolGrant(others, (KEY,), ()),
        EnrolGrant(foreign, (KEY,), ()),
        EnrolGrant(b"", (KEY,), ()),
        EnrolGrant(own, (), ()),
        EnrolGrant(own, (KEY, KEY), ()),
        EnrolGrant(own, (replace(KEY, secret=b"hush"),), ()),
    ):
        client = world.client(world.invite())
        (offer,) = world.server().receive(client.start())
        client.receive(offer)
        with pytest.raises(P2PLLMError) as caught:
            client.receive(grant)
        assert isinstance(caught.value, RemoteProtocolError | AuthenticationError)
        assert client.result is None
        assert "hush" not in str(caught.value)


def test_no_more_peers_are_told_than_the_message_holds(world: World) -> None:
    client = world.client(world.invite())
    peers = tuple(Address("10.0.0.1", port) for port in range(1, 500))
    world.run(client, world.server(peers=peers))
    assert client.result is not None
    assert client.result.peers == peers[:128]


def test_the_first_member_admits_itself_and_talks_to_the_next(world: World) -> None:
    first = NodeIdentity.generate()
    founded = found_swarm(first, world.swarm, now=NOW, random_bytes=random.Random(3).randbytes)
    assert world.swarm.certificate.verify(founded.certificate, NOW).node == first.node_id
    client = world.client(world.invite(), server_certificate=founded.certificate)
    world.run(client, world.server(certificate=founded.certificate, keys=founded.keys))
    assert client.result is not None
    sealed = DatagramSealer(world.joiner.node_id, client.result.keys, 1).seal(b"hello")
    assert DatagramSealer(first.node_id, founded.keys, 1).open(sealed) == (
        world.joiner.node_id,
        b"hello",
    )


def test_starting_twice_is_our_own_bug(world: World) -> None:
    client = world.client(world.invite())
    client.start()
    with pytest.raises(RuntimeError):
        client.start()
