from __future__ import annotations

import asyncio
import dataclasses
import ssl

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
    RemoteProtocolError,
)
from p2pllm.domain.ids import NodeId
from p2pllm.domain.messages import StreamProbe
from p2pllm.domain.records import Address
from p2pllm.net.enrolment import enrol
from p2pllm.net.limits import StreamLimits
from p2pllm.wire.frames import PREFIX, frame_parts
from tests.net.certificates import Identity, Swarm
from tests.net.peers import HOST, Peer

QUICK = StreamLimits(keep_alive_s=0.1, enrolment_timeout_s=0.5, shutdown_timeout_s=0.3)


class Member:
    """Grants a joiner who knows the word; the machinery of trust is tested elsewhere."""

    def __init__(self, certificate: bytes, member: NodeId | None = None) -> None:
        self._certificate = certificate
        self._member = member
        self.finished = False

    def receive(self, message: EnrolmentMessage) -> list[EnrolmentMessage]:
        match message:
            case EnrolRequest():
                return [EnrolOffer(b"authority", bytes(32), False)]
            case EnrolProof(secret=b"word", signature=signature) if (
                signature == self._certificate[:64]
            ):
                self.finished = True
                return [EnrolGrant(b"welcome", (), ())]
            case EnrolProof(secret=b"") if self._member is not None:
                self.finished = True
                return [EnrolGrant(self._member.encode(), (), ())]
            case EnrolProof():
                self.finished = True
                return [EnrolRefusal("invite_refused", "that is not the word")]
            case _:
                raise RemoteProtocolError("not now")


class Joiner:
    def __init__(self, certificate: bytes, word: bytes) -> None:
        self._certificate = certificate
        self._word = word
        self.result: bytes | None = None

    def start(self) -> EnrolmentMessage:
        return EnrolRequest(1)

    def receive(self, message: EnrolmentMessage) -> list[EnrolmentMessage]:
        match message:
            case EnrolOffer():
                return [EnrolProof(b"key", self._word, self._certificate[:64], "joiner")]
            case EnrolGrant():
                self.result = message.certificate
                return []
            case EnrolRefusal():
                raise InviteError(message.detail, code=message.code)
            case _:
                raise RemoteProtocolError("not now")


async def join(address: Address, word: bytes = b"word", timeout_s: float = 2.0) -> bytes:
    return await enrol(
        address, lambda certificate: Joiner(certificate, word), exchange_timeout_s=timeout_s
    )


async def test_a_joiner_gets_what_the_member_grants(swarm: Swarm) -> None:
    async with Peer(swarm.member(), enrolment=Member) as peer:
        assert await join(peer.addresses[0]) == b"welcome"
        assert peer.refused_total == 0


async def test_both_exchanges_see_the_same_certificate(swarm: Swarm) -> None:
    shown: list[bytes] = []

    def member(certificate: bytes, _: NodeId | None) -> Member:
        shown.append(certificate)
        return Member(certificate)

    def joiner(certificate: bytes) -> Joiner:
        shown.append(certificate)
        return Joiner(certificate, b"word")

    async with Peer(swarm.member(), enrolment=member) as peer:
        await enrol(peer.addresses[0], joiner)
        assert shown == [peer.identity.certificate] * 2


async def test_a_refusal_reaches_the_joiner(swarm: Swarm) -> None:
    async with Peer(swarm.member(), enrolment=Member) as peer:
        with pytest.raises(InviteError, match="that is not the word"):
            await join(peer.addresses[0], b"guess")


async def test_a_member_that_cannot_let_anybody_in_says_so(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as peer:
        with pytest.raises(InviteError, match="cannot let anybody in") as caught:
            await join(peer.addresses[0])
        assert caught.value.code == "cannot_admit"


async def test_joins_are_bounded_in_number_and_rate(swarm: Swarm) -> None:
    limits = dataclasses.replace(QUICK, enrolments_max=2, enrolments_per_s=0.01)
    async with Peer(swarm.member(), enrolment=Member, limits=limits) as peer:
        for _ in range(2):
            await join(peer.addresses[0])
        with pytest.raises(InviteError, match="too many join at once"):
            await join(peer.addresses[0])


async def renew(identity: Identity, address: Address) -> bytes:
    return await enrol(
        address,
        lambda certificate: Joiner(certificate, b""),
        context=identity.client_context,
        exchange_timeout_s=2,
    )


async def test_a_member_renews_as_whom_its_certificate_names(swarm: Swarm) -> None:
    identity = swarm.member()
    async with Peer(swarm.member(), enrolment=Member) as peer:
        assert await renew(identity, peer.addresses[0]) == identity.node.encode()
        assert peer.refused_total == 0


async def test_a_member_renews_while_its_stream_goes_on(swarm: Swarm) -> None:
    async with (
        Peer(swarm.member(), enrolment=Member) as peer,
        Peer(swarm.member()) as other,
    ):
        other.tell(peer, StreamProbe(1))
        assert await peer.messages.get() == (other.node, StreamProbe(1))
        assert await renew(other.identity, peer.addresses[0]) == other.node.encode()
        other.tell(peer, StreamProbe(2))
        assert await peer.messages.get() == (other.node, StreamProbe(2))
        assert other.unreachable.empty()


async def test_without_a_certificate_nobody_renews(swarm: Swarm) -> None:
    async with Peer(swarm.member(), enrolment=Member) as peer:
        with pytest.raises(InviteError, match="that is not the word"):
            await join(peer.addresses[0], b"")


async def test_a_certificate_of_another_swarm_renews_nothing(
    swarm: Swarm, other_swarm: Swarm
) -> None:
    foreign = other_swarm.member()
    async with Peer(swarm.member(), enrolment=Member) as peer:
        with pytest.raises(ConfigurationError, match="no member of this swarm"):
            await renew(foreign, peer.addresses[0])
        foreign.client_context.verify_mode = ssl.CERT_NONE
        with pytest.raises(ConfigurationError, match="broke the join off"):
            await renew(foreign, peer.addresses[0])
        assert peer.refused_total


async def test_a_member_that_cannot_renew_says_so(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as peer:
        with pytest.raises(InviteError, match="cannot let anybody in") as caught:
            await renew(swarm.member(), peer.addresses[0])
        assert caught.value.code == "cannot_admit"
        assert peer.refused_total == 0


async def test_a_crowd_of_strangers_does_not_keep_members_from_renewing(swarm: Swarm) -> None:
    limits = dataclasses.replace(QUICK, enrolments_max=1, enrolments_per_s=0.01)
    async with Peer(swarm.member(), enrolment=Member, limits=limits) as peer:
        await join(peer.addresses[0])
        with pytest.raises(InviteError, match="too many join at once"):
            await join(peer.addresses[0])
        await renew(swarm.member(), peer.addresses[0])
        with pytest.raises(InviteError, match="too many join at once"):
            await renew(swarm.member(), peer.addresses[0])


async def test_a_member_that_greets_does_not_enrol_afterwards(swarm: Swarm) -> None:
    identity = swarm.member()
    async with Peer(swarm.member(), enrolment=Member, limits=QUICK) as peer:
        reader, writer = await asyncio.open_connection(
            HOST, peer.port, ssl=identity.client_context, server_hostname=""
        )
        for message in (identity.hello(), EnrolRequest(1)):
            writer.writelines(frame_parts(message))
        answer = await asyncio.wait_for(reader.read(), 3)
        assert b"authority" not in answer
        writer.transport.abort()


async def test_a_renewal_that_is_begun_and_not_gone_on_with_ends(swarm: Swarm) -> None:
    identity = swarm.member()
    async with Peer(swarm.member(), enrolment=Member, limits=QUICK) as peer:
        reader, writer = await asyncio.open_connection(
            HOST, peer.port, ssl=identity.client_context, server_hostname=""
        )
        writer.writelines(frame_parts(EnrolRequest(1)))
        assert b"authority" in await asyncio.wait_for(reader.read(), 3)
        writer.transport.abort()


async def test_a_factory_that_refuses_closes_the_connection(swarm: Swarm) -> None:
    def refuse(certificate: bytes, _: NodeId | None) -> Member:
        raise AuthenticationError("not today")

    async with Peer(swarm.member(), enrolment=refuse) as peer:
        with pytest.raises(InviteError, match="not today"):
            await join(peer.addresses[0])


async def _stranger(peer: Peer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return await asyncio.open_connection(HOST, peer.port, ssl=context, server_hostname="")


@pytest.mark.parametrize(
    "frame",
    [
        b"".join(frame_parts(StreamProbe(1))),
        PREFIX.pack(5_000, 0),
        PREFIX.pack(20, 1),
        b"".join(frame_parts(EnrolGrant(b"mine", (), ()))),
        b"",
    ],
    ids=["message", "long", "payload", "out of turn", "silence"],
)
async def test_without_a_certificate_there_is_nothing_but_the_exchange(
    swarm: Swarm, frame: bytes
) -> None:
    async with Peer(swarm.member(), enrolment=Member, limits=QUICK) as peer:
        reader, writer = await _stranger(peer)
        writer.write(frame)
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.transport.abort()
        assert peer.messages.empty()
        await peer.refused_one()


async def test_a_joiner_is_told_where_nobody_listens() -> None:
    with pytest.raises(ConfigurationError, match=r"refused the connection\. Check the port"):
        await join(Address(HOST, 1))


async def test_a_joiner_is_told_of_a_host_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        await join(Address("no-such-host.invalid", 7777))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_a_joiner_is_told_of_a_port_that_is_not_a_nodes(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigurationError, match=r"TLS|cannot be reached"):
            await join(Address(HOST, port))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"x" * 100, "does not speak as a p2pllm node"),
        (b"", "without an answer"),
        (None, "did not finish the join within 0.2 s"),
    ],
)
async def test_a_joiner_is_told_of_a_member_that_misbehaves(
    swarm: Swarm, answer: bytes | None, message: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    member = swarm.member()
    server = await asyncio.start_server(
        serve, HOST, 0, ssl=member.server_context, ssl_shutdown_timeout=0.1
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigurationError, match=message):
            await join(Address(HOST, port), timeout_s=0.2)
