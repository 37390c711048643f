from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import ssl
import subprocess
import sys
from typing import Any

import pytest

from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.ids import NodeId, SessionId
from p2pllm.domain.messages import Activation, ActivationType, Forward, Hello, StreamProbe
from p2pllm.domain.records import Address
from p2pllm.net.limits import StreamLimits
from p2pllm.wire.codec import LocalProtocolError
from p2pllm.wire.control import KeepAlive
from p2pllm.wire.frames import PREFIX, frame_parts
from tests.net.certificates import Swarm, identify
from tests.net.peers import HOST, Peer

QUICK = StreamLimits(
    keep_alive_s=0.1,
    silence_timeout_s=0.4,
    connect_timeout_s=1.0,
    greeting_timeout_s=0.3,
    handshake_timeout_s=0.3,
    incoming_silence_timeout_s=0.6,
    shutdown_timeout_s=0.3,
)


def forward(step: int, columns: int = 4_096, rows: int = 1) -> Forward:
    data = bytes([step % 256]) * (rows * columns * 2)
    activation = Activation(ActivationType.BFLOAT16, rows, columns, data)
    return Forward(
        SessionId("ab" * 16), 1, step, 1, step, (step,) * rows, True, activation=activation
    )


async def within(awaitable: Any, timeout_s: float = 5.0) -> Any:
    return await asyncio.wait_for(awaitable, timeout_s)


async def nothing(queue: asyncio.Queue[Any], wait_s: float = 0.3) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), wait_s)


async def connected(peer: Peer) -> None:
    """Wait until it has an open stream; nothing tells, since nobody needs to know."""
    while not peer.connected():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def incoming(peer: Peer, node: NodeId) -> Any:
    return peer._listener._peers[node]


async def test_messages_arrive_in_order_with_their_sender(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b:
        for step in range(200):
            a.tell(b, forward(step))
        for step in range(200):
            assert await within(b.messages.get()) == (a.node, forward(step))
        assert a.connected() == [b.node]


async def test_two_nodes_may_dial_each_other_at_once(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b:
        for number in range(20):
            a.tell(b, StreamProbe(number))
            b.tell(a, StreamProbe(number))
        for number in range(20):
            assert await within(a.messages.get()) == (b.node, StreamProbe(number))
            assert await within(b.messages.get()) == (a.node, StreamProbe(number))
        assert a.unreachable.empty()
        assert b.unreachable.empty()


async def test_a_large_activation_does_not_overtake_or_change(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b:
        messages = [forward(0, 8_192, 512), StreamProbe(1), forward(2, 8_192, 300), StreamProbe(3)]
        for message in messages:
            a.tell(b, message)
        for message in messages:
            assert await within(b.messages.get()) == (a.node, message)


async def test_whoever_else_answers_at_the_address_gets_nothing(swarm: Swarm) -> None:
    wanted = swarm.member()
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b:
        a.send(wanted.node, b.addresses, StreamProbe(1))
        node, detail = await within(a.unreachable.get())
        assert node == wanted.node
        assert "another node answers there" in detail
        await nothing(b.messages, 0.1)


async def test_the_next_address_is_tried_where_one_does_not_answer(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b, Peer(swarm.member()) as c:
        a.send(b.node, (Address(HOST, 1), *c.addresses, *b.addresses), StreamProbe(1))
        assert await within(b.messages.get()) == (a.node, StreamProbe(1))
        assert a.unreachable.empty()


async def test_a_node_without_addresses_is_unreachable(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a:
        a.watch(NodeId("0" * 32), ())
        assert await within(a.unreachable.get()) == (
            NodeId("0" * 32),
            "no address of it is known",
        )


async def test_a_member_of_another_swarm_is_refused_by_both(
    swarm: Swarm, other_swarm: Swarm
) -> None:
    async with Peer(swarm.member()) as a, Peer(other_swarm.member()) as b:
        a.tell(b, StreamProbe(1))
        _, detail = await within(a.unreachable.get())
        assert "TLS failed" in detail
        b.tell(a, StreamProbe(1))
        await within(b.unreachable.get())
        assert a.messages.empty()
        assert b.messages.empty()


async def test_a_peer_that_does_not_check_whom_it_reaches_is_refused_by_its_certificate(
    swarm: Swarm, other_swarm: Swarm
) -> None:
    stranger = other_swarm.member()
    blind = stranger.client_context
    blind.verify_mode = ssl.CERT_NONE
    async with Peer(swarm.member()) as a, Peer(stranger) as b:
        b.tell(a, StreamProbe(1))
        _, detail = await within(b.unreachable.get())
        assert "TLS failed" in detail or "broke" in detail or "closed" in detail
        assert a.messages.empty()


async def test_a_revoked_member_is_let_neither_in_nor_out(swarm: Swarm) -> None:
    revoked = swarm.member()

    def check(certificate: bytes) -> NodeId:
        node = identify(certificate)
        if node == revoked.node:
            raise AuthenticationError("its membership was revoked")
        return node

    async with Peer(swarm.member(), identify=check) as a, Peer(revoked) as b:
        a.tell(b, StreamProbe(1))
        assert "revoked" in (await within(a.unreachable.get()))[1]
        b.tell(a, StreamProbe(1))
        assert "revoked" in (await within(b.unreachable.get()))[1]


async def test_a_peer_can_be_cut_off_both_ways(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b:
        a.tell(b, StreamProbe(1))
        b.tell(a, StreamProbe(1))
        await within(a.messages.get())
        await within(b.messages.get())
        a.disconnect(b.node, "revoked")
        assert await within(a.unreachable.get()) == (b.node, "revoked")
        assert "revoked" in (await within(b.unreachable.get()))[1]
        await nothing(a.unreachable, 0.1)
        await nothing(b.unreachable, 0.1)


@pytest.mark.parametrize(
    ("ours", "theirs", "agree"),
    [((1, 1), (2, 3), False), ((3, 4), (1, 2), False), ((1, 2), (2, 3), True)],
)
async def test_versions_are_negotiated_and_a_mismatch_is_told_to_both(
    swarm: Swarm, ours: tuple[int, int], theirs: tuple[int, int], agree: bool
) -> None:
    one, two = swarm.member(), swarm.member()
    async with Peer(one, hello=one.hello(ours)) as a, Peer(two, hello=two.hello(theirs)) as b:
        a.tell(b, StreamProbe(1))
        if agree:
            await within(b.messages.get())
        else:
            _, detail = await within(a.unreachable.get())
            assert "no common protocol version" in detail
            assert "update the older one" in detail
            await b.refused_one()


@pytest.mark.parametrize("lie", ["node", "swarm"])
async def test_a_greeting_that_contradicts_the_certificate_is_refused(
    swarm: Swarm, lie: str
) -> None:
    liar, honest = swarm.member(), swarm.member()
    false = dataclasses.replace(liar.hello(), **{lie: "ab" * (16 if lie == "node" else 32)})
    async with Peer(liar, hello=false) as a, Peer(honest) as b:
        a.tell(b, StreamProbe(1))
        assert "another" in (await within(a.unreachable.get()))[1]
        b.tell(a, StreamProbe(1))
        assert "another" in (await within(b.unreachable.get()))[1]
        assert a.messages.empty()
        assert b.messages.empty()


async def test_a_break_is_told_once_and_the_next_send_connects_again(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b:
        a.tell(b, StreamProbe(1))
        await within(b.messages.get())
        incoming(b, a.node).transport.abort()
        assert (await within(a.unreachable.get()))[0] == b.node
        await nothing(a.unreachable, 0.1)
        a.tell(b, StreamProbe(2))
        assert await within(b.messages.get()) == (a.node, StreamProbe(2))
        assert a.unreachable.empty()


async def test_the_end_of_a_watched_peer_is_told(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a:
        async with Peer(swarm.member()) as b:
            a.watch(b.node, b.addresses)
            await connected(a)
        node, detail = await within(a.unreachable.get())
        assert node == b.node
        assert "this node stops" in detail
        await nothing(a.unreachable, 0.1)


async def test_a_peer_that_hangs_is_noticed_once(swarm: Swarm) -> None:
    async with (
        Peer(swarm.member(), limits=QUICK) as a,
        Peer(swarm.member(), limits=QUICK) as b,
    ):
        a.tell(b, StreamProbe(1))
        await within(b.messages.get())
        incoming(b, a.node).transport.pause_reading()
        node, detail = await within(a.unreachable.get(), 2.0)
        assert node == b.node
        assert "silent" in detail
        await nothing(a.unreachable, 0.3)


async def test_an_idle_stream_stays(swarm: Swarm) -> None:
    async with (
        Peer(swarm.member(), limits=QUICK) as a,
        Peer(swarm.member(), limits=QUICK) as b,
    ):
        a.watch(b.node, b.addresses)
        await nothing(a.unreachable, 1.2)
        assert a.connected() == [b.node]
        assert len(b._listener._peers) == 1


async def test_a_peer_that_reads_slowly_is_not_taken_for_dead(swarm: Swarm) -> None:
    async with Peer(swarm.member(), limits=QUICK) as a, Peer(swarm.member()) as b:
        a.tell(b, StreamProbe(0))
        await within(b.messages.get())
        transport = incoming(b, a.node).transport
        for step in range(10):
            a.tell(b, forward(step, 8_192, 400))  # 6.5 MB each; the kernel takes some of them.
        for _ in range(12):
            transport.pause_reading()
            await asyncio.sleep(0.1)
            transport.resume_reading()
            await asyncio.sleep(0.005)
        transport.resume_reading()
        for step in range(10):
            assert (await within(b.messages.get()))[1].step == step
        assert a.unreachable.empty()


async def test_what_waits_for_a_peer_is_bounded(swarm: Swarm) -> None:
    limits = StreamLimits(queue_bytes_max=8 * 1024 * 1024)
    async with Peer(swarm.member(), limits=limits) as a, Peer(swarm.member()) as b:
        a.tell(b, StreamProbe(0))
        await within(b.messages.get())
        incoming(b, a.node).transport.pause_reading()
        for step in range(40):
            a.tell(b, forward(step, 8_192, 128))
            assert a.queued_bytes(b.node) <= limits.queue_bytes_max
            await asyncio.sleep(0)
            if not a.unreachable.empty():
                break
        node, detail = await within(a.unreachable.get())
        assert node == b.node
        assert "too far behind" in detail


async def test_the_number_of_waiting_frames_is_bounded(swarm: Swarm) -> None:
    limits = StreamLimits(queue_frames_max=10)
    async with Peer(swarm.member(), limits=limits) as a, Peer(swarm.member()) as b:
        for number in range(11):
            a.tell(b, StreamProbe(number))
        assert "too far behind" in (await within(a.unreachable.get()))[1]


async def test_a_message_that_breaks_the_protocol_is_our_bug(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b:
        with pytest.raises(LocalProtocolError):
            a.tell(b, StreamProbe(-1))
        a.tell(b, StreamProbe(1))
        assert await within(b.messages.get()) == (a.node, StreamProbe(1))


async def test_what_was_sent_last_still_arrives_when_a_node_stops(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as b:
        async with Peer(swarm.member()) as a:
            for step in range(20):
                a.tell(b, forward(step, 8_192, 32))
        for step in range(20):
            assert (await within(b.messages.get()))[1].step == step
        a.tell(b, StreamProbe(1))  # Stopped: nothing happens.


async def test_stopping_does_not_wait_for_a_peer_that_hangs(swarm: Swarm) -> None:
    async with Peer(swarm.member()) as b:
        async with Peer(swarm.member(), limits=QUICK) as a:
            a.tell(b, StreamProbe(0))
            await within(b.messages.get())
            incoming(b, a.node).transport.pause_reading()
            for step in range(10):
                a.tell(b, forward(step, 8_192, 400))
            started = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - started < 2.0


async def test_a_new_connection_of_a_peer_replaces_its_old_one(swarm: Swarm) -> None:
    identity = swarm.member()
    async with Peer(swarm.member()) as b, Peer(identity) as old, Peer(identity) as new:
        old.tell(b, StreamProbe(1))
        await within(b.messages.get())
        new.tell(b, StreamProbe(2))
        await within(b.messages.get())
        assert len(b._listener._peers) == 1
        await within(old.unreachable.get())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_dies_or_freezes_is_noticed(swarm: Swarm, end: signal.Signals) -> None:
    member = swarm.member()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.net.peers", str(member.file), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await within(process.stdout.readline(), 20))
        async with Peer(swarm.member(), limits=QUICK) as a:
            a.send(member.node, (Address(HOST, port),), StreamProbe(1))
            await connected(a)
            os.kill(process.pid, end)
            assert (await within(a.unreachable.get(), 3.0))[0] == member.node
            await nothing(a.unreachable, 0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# What anyone can send to the port.


async def _closed(reader: asyncio.StreamReader, timeout_s: float = 3.0) -> None:
    """Read until the other side closes."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await within(reader.read(), timeout_s)


async def _tls(peer: Peer, context: ssl.SSLContext) -> Any:
    return await asyncio.open_connection(HOST, peer.port, ssl=context, server_hostname="")


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(500), b"\x16\x03\x01\x7f\xff"]
)
async def test_garbage_is_closed_and_counted(swarm: Swarm, garbage: bytes) -> None:
    async with Peer(swarm.member(), limits=QUICK) as a, Peer(swarm.member()) as b:
        reader, writer = await asyncio.open_connection(HOST, a.port)
        writer.write(garbage)
        await _closed(reader)
        await _hang_up(writer)
        await a.refused_one()
        b.tell(a, StreamProbe(1))
        await within(a.messages.get())


async def test_slow_handshakes_are_bounded_and_do_not_keep_peers_out(swarm: Swarm) -> None:
    limits = dataclasses.replace(QUICK, handshakes_max=4, handshake_timeout_s=30.0)
    async with Peer(swarm.member(), limits=limits) as a, Peer(swarm.member()) as b:
        slow = [await asyncio.open_connection(HOST, a.port) for _ in range(10)]
        for reader, _ in slow[:6]:
            await _closed(reader)
        assert len(a._listener._handshakes) <= 4
        b.tell(a, StreamProbe(1))
        await within(a.messages.get())
        for _, writer in slow:
            await _hang_up(writer)


async def test_a_handshake_that_takes_too_long_is_closed(swarm: Swarm) -> None:
    async with Peer(swarm.member(), limits=QUICK) as a:
        reader, writer = await asyncio.open_connection(HOST, a.port)
        await _closed(reader)
        await _hang_up(writer)


async def test_a_member_that_does_not_greet_is_closed(swarm: Swarm) -> None:
    async with Peer(swarm.member(), limits=QUICK) as a:
        reader, writer = await _tls(a, swarm.member().client_context)
        await _closed(reader)
        await _hang_up(writer)
        assert not a._listener._connections


async def test_the_number_of_incoming_connections_is_bounded(swarm: Swarm) -> None:
    limits = dataclasses.replace(QUICK, incoming_max=2)
    async with Peer(swarm.member(), limits=limits) as a:
        kept = []
        for number in range(2):
            member = swarm.member()
            reader, writer = await _tls(a, member.client_context)
            for part in frame_parts(member.hello()):
                writer.write(part)
            await within(reader.readexactly(8))
            kept.append(writer)
            assert len(a._listener._peers) == number + 1
        reader, writer = await asyncio.open_connection(HOST, a.port)
        await _closed(reader)
        for one in (*kept, writer):
            await _hang_up(one)
        await a.refused_one()


@pytest.mark.parametrize(
    "frame",
    [
        PREFIX.pack(4_097, 0),
        PREFIX.pack(10, 10),
        b"".join(frame_parts(StreamProbe(1))),
        b"".join(frame_parts(KeepAlive())),
        PREFIX.pack(3, 0) + b"abc",
    ],
    ids=["long", "payload", "message", "keep-alive", "garbage"],
)
async def test_before_the_greeting_only_a_greeting_may_come(swarm: Swarm, frame: bytes) -> None:
    async with Peer(swarm.member(), limits=QUICK) as a:
        reader, writer = await _tls(a, swarm.member().client_context)
        writer.write(frame)
        await _closed(reader)
        await _hang_up(writer)
        assert a.messages.empty()
        await a.refused_one()


@pytest.mark.parametrize(
    "frame",
    [PREFIX.pack(2**31, 0), PREFIX.pack(100, 2**27), PREFIX.pack(2, 0) + b"\x92\x01"],
    ids=["header", "payload", "garbage"],
)
async def test_a_peer_that_breaks_the_protocol_is_told_so_and_closed(
    swarm: Swarm, frame: bytes
) -> None:
    member = swarm.member()
    async with Peer(swarm.member(), limits=QUICK) as a:
        reader, writer = await _tls(a, member.client_context)
        writer.write(b"".join(frame_parts(member.hello())) + frame)
        answer = await within(reader.read())
        assert b"too long" in answer or b"msgpack" in answer
        await _hang_up(writer)


async def test_a_peer_that_does_not_read_its_answers_is_closed(swarm: Swarm) -> None:
    member = swarm.member()
    async with Peer(swarm.member(), limits=StreamLimits(write_bytes_max=64 * 1_024)) as a:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, (HOST, a.port))
        reader, writer = await asyncio.open_connection(
            sock=small, ssl=member.client_context, server_hostname=""
        )
        writer.write(b"".join(frame_parts(member.hello())))
        await within(reader.readexactly(8))
        writer.transport.pause_reading()
        flood = b"".join(frame_parts(KeepAlive())) * 20_000
        while a._listener._connections:
            writer.write(flood)
            await asyncio.sleep(0.001)
        await _hang_up(writer)


async def test_a_new_certificate_is_used_for_new_connections(swarm: Swarm) -> None:
    renewed = swarm.member()
    async with Peer(swarm.member()) as a, Peer(swarm.member()) as b:
        a.renew(renewed.server_context, renewed.client_context, renewed.certificate)
        b.tell(a, StreamProbe(1))
        assert "another node" in (await within(b.unreachable.get()))[1]


def test_a_greeting_has_room_for_any_software_name() -> None:
    hello = Hello(1, 65_535, NodeId("f" * 32), "f" * 64, "x" * 64)  # type: ignore[arg-type]
    assert len(frame_parts(hello)[0]) < 4_096
