from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.gossip import DATAGRAM_BYTES_MAX, Bodies, Ping, Signed
from p2pllm.domain.ids import NodeId
from p2pllm.domain.records import Address, LoadRecord
from p2pllm.net.datagrams import DatagramEndpoint
from p2pllm.net.sockets import bind_ports
from p2pllm.wire.codec import LocalProtocolError, encode

HOST = "127.0.0.1"


class Sealer:
    """Says who it is, in clear; cryptography is tested elsewhere."""

    def __init__(self, node: NodeId) -> None:
        self._node = node

    def seal(self, payload: bytes) -> bytes:
        return b"seal" + bytes.fromhex(self._node) + payload

    def open(self, data: bytes) -> tuple[NodeId, bytes]:
        if data[:4] != b"seal":
            raise AuthenticationError("no seal")
        return NodeId(data[4:20].hex()), data[20:]


class Endpoint(DatagramEndpoint):
    def __init__(self, name: str, host: str = HOST) -> None:
        self.node = NodeId(name * 32)
        self.messages: asyncio.Queue[tuple[NodeId, Address, Any]] = asyncio.Queue()
        ports = bind_ports(host, 0)
        ports.stream.close()
        super().__init__(
            ports.datagram,
            sealer=Sealer(self.node),
            verify=lambda signed: signed.signature == b"good",
            on_message=lambda *received: self.messages.put_nowait(received),
        )

    @property
    def address(self) -> Address:
        return Address(HOST, self.port)


async def received(endpoint: Endpoint) -> tuple[NodeId, Address, Any]:
    return await asyncio.wait_for(endpoint.messages.get(), 3)


def ping(number: int) -> Ping:
    return Ping(number, None)


async def test_a_message_arrives_with_its_sender_and_source() -> None:
    async with Endpoint("a") as a, Endpoint("b") as b:
        a.send(b.address, ping(7))
        assert await received(b) == (a.node, a.address, ping(7))
        assert (a.sent_total, b.received_total) == (1, 1)


@pytest.mark.parametrize("garbage", [b"", b"x", bytes(1_280), b"seal", bytes(9_000)])
async def test_what_no_member_sealed_is_counted_and_not_answered(garbage: bytes) -> None:
    async with Endpoint("a") as a, Endpoint("b") as b:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(garbage, (HOST, b.port))
            a.send(b.address, ping(1))
            await received(b)
            stranger.setblocking(False)
            with pytest.raises(BlockingIOError):
                stranger.recv(100)
        assert b.garbage_total + b.malformed_total == 1
        assert b.received_total == 1


async def test_a_sealed_datagram_that_is_too_long_is_not_opened() -> None:
    async with Endpoint("b") as b:
        b.receive(b"seal" + bytes(DATAGRAM_BYTES_MAX), b.address)
        assert b.garbage_total == 1


async def test_a_member_that_sends_nonsense_is_counted() -> None:
    async with Endpoint("a") as a, Endpoint("b") as b:
        b.receive(Sealer(a.node).seal(b"\xc1"), a.address)
        assert (b.malformed_total, b.received_total) == (1, 0)


async def test_records_nobody_vouches_for_are_taken_out_and_the_rest_is_handed_on() -> None:
    def load(version: int, signature: bytes) -> Signed[LoadRecord]:
        record = LoadRecord(NodeId("c" * 32), 1, version, 0, 0, 0, 0.0)
        return Signed(record, encode(record), signature, b"")

    good, bad = load(1, b"good"), load(2, b"bad")
    async with Endpoint("a") as a, Endpoint("b") as b:
        a.send(b.address, Bodies(loads=(bad, good, bad)))
        assert (await received(b))[2] == Bodies(loads=(good,))
        assert b.unverified_total == 2


async def test_a_dual_stack_socket_speaks_ipv4_and_ipv6() -> None:
    async with Endpoint("a", "") as a, Endpoint("b", "") as b:
        a.send(b.address, ping(1))
        assert (await received(b))[1] == a.address
        if b._family == socket.AF_INET6:
            a.send(Address("::1", b.port), ping(2))
            assert (await received(b))[1] == Address("::1", a.port)


async def test_a_name_is_looked_up() -> None:
    async with Endpoint("a") as a, Endpoint("b") as b:
        a.send(Address("localhost", b.port), ping(1))
        assert (await received(b))[2] == ping(1)


async def test_what_cannot_be_sent_is_counted_and_nothing_breaks() -> None:
    async with Endpoint("a") as a, Endpoint("b") as b:
        a.send(Address("no-such-host.invalid", 1), ping(1))
        a.send(Address("::1", b.port), ping(1))  # Of the other family.
        a.send(Address("255.255.255.255", 1), ping(1))  # Broadcast: not permitted.
        a.send(b.address, ping(2))
        assert (await received(b))[2] == ping(2)
        async with asyncio.timeout(5):
            while a.unsent_total < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_message_that_breaks_the_protocol_is_our_bug() -> None:
    async with Endpoint("a") as a:
        with pytest.raises(LocalProtocolError):
            a.send(a.address, ping(-1))


async def test_a_stopped_endpoint_drops_what_it_is_asked_to_send() -> None:
    async with Endpoint("a") as a:
        pass
    a.send(a.address, ping(1))
    a.send(Address("localhost", a.port), ping(1))
    assert a.unsent_total == 2
