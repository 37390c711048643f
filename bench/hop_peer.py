"""One end of the hop benchmark, a process of its own: `python -m bench.hop_peer FOLDER ROLE`.

The `echo` end sends back what it gets, by TLS stream and by plain TCP. The `ask` end reads where
that is, and which blocks to time, as JSON lines from standard input, and answers in kind. Both run
the event loop that nodes run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from p2pllm.domain.ids import NodeId, SessionId, SwarmId
from p2pllm.domain.messages import (
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    Activation,
    ActivationType,
    Forward,
    Hello,
)
from p2pllm.domain.records import Address
from p2pllm.net.sockets import bind_stream
from p2pllm.net.streams import PeerStreams
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.tls import client_context, identify, server_context

AUTHORITY_FILE = "authority.der"
CERTIFICATE_FILE = "certificate.der"
HOST = "127.0.0.1"
WARM_UP_ROUNDS = 50


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Two members of a throw-away swarm, each in a folder of its own."""
    now = datetime.now(tz=UTC)
    authority = SwarmAuthority.generate(now=now)
    members: list[Path] = []
    for name in ("echo", "ask"):
        member = folder / name
        member.mkdir()
        identity = NodeIdentity.load_or_create(member)
        certificate = authority.issue(identity.public_key, now=now)
        (member / AUTHORITY_FILE).write_bytes(authority.certificate.der)
        (member / CERTIFICATE_FILE).write_bytes(certificate)
        members.append(member)
    return members[0], members[1]


def step(size_bytes: int) -> Forward:
    """A decode step with an activation of this size, as it goes from stage to stage."""
    columns = size_bytes // ActivationType.FLOAT32.itemsize_bytes
    data = bytes(columns * ActivationType.FLOAT32.itemsize_bytes)
    return Forward(
        session=SessionId("0" * 32),
        attempt=1,
        step=100,
        hop=1,
        position=100,
        tokens=(7,),
        sample=True,
        activation=Activation(ActivationType.FLOAT32, 1, columns, data),
    )


class Streams:
    """The product's streams of one member; `receive` gets what comes."""

    def __init__(self, folder: Path, receive: Callable[[NodeId, Any], None]) -> None:
        identity = NodeIdentity.load_or_create(folder)
        authority = (folder / AUTHORITY_FILE).read_bytes()
        certificate = (folder / CERTIFICATE_FILE).read_bytes()
        tls = (identity, certificate, authority, folder)
        self.node = identity.node_id
        self.streams = PeerStreams(
            Hello(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION, self.node, SwarmId("0" * 64), "bench"),
            listener=bind_stream(HOST, 0),
            server_context=server_context(*tls),
            client_context=client_context(*tls),
            own_certificate=certificate,
            identify=identify,
            on_message=receive,
            on_unreachable=lambda _node, _detail: None,
        )

    def send(self, node: NodeId, port: int, message: Any) -> None:
        """To the other end."""
        self.streams.send(node, (Address(HOST, port),), message)


class _Plain(asyncio.Protocol):
    """Whole blocks of a fixed size over plain TCP: the least a hop can cost in this language."""

    def __init__(
        self, size_bytes: int, receive: Callable[[asyncio.Transport, bytes], None]
    ) -> None:
        self._size_bytes = size_bytes
        self._receive = receive
        self._parts = bytearray()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parts += data
        if len(self._parts) == self._size_bytes:
            block, self._parts = bytes(self._parts), bytearray()
            self._receive(self.transport, block)


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(content: Any) -> None:
    print(json.dumps(content), flush=True)


async def _echo(folder: Path, size_bytes: int) -> None:
    lines = await _lines()
    ports: dict[str, int] = {}

    def back(sender: NodeId, message: Any) -> None:
        end.send(sender, ports["ask"], message)

    end = Streams(folder, back)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Plain(size_bytes, lambda transport, block: transport.write(block)), HOST, 0
    )
    async with end.streams, server:
        _say(
            {
                "node": end.node,
                "stream": end.streams.port,
                "plain": server.sockets[0].getsockname()[1],
            }
        )
        ports["ask"] = json.loads(await lines.readline())["port"]
        await lines.readline()  # The end of input.


async def _ask(folder: Path, size_bytes: int) -> None:
    lines = await _lines()
    came = asyncio.Event()
    end = Streams(folder, lambda _sender, _message: came.set())
    async with end.streams:
        _say({"port": end.streams.port})
        there = json.loads(await lines.readline())
        message = step(size_bytes)
        block = bytes(size_bytes)
        loop = asyncio.get_running_loop()
        plain, _ = await loop.create_connection(
            lambda: _Plain(size_bytes, lambda _transport, _block: came.set()), HOST, there["plain"]
        )

        async def by_stream() -> None:
            came.clear()
            end.send(there["node"], there["stream"], message)
            await came.wait()

        async def by_plain() -> None:
            came.clear()
            plain.write(block)
            await came.wait()

        rounds = {"stream": by_stream, "plain": by_plain}
        for once in rounds.values():
            await _time(once, WARM_UP_ROUNDS, 0.0)
        while line := await lines.readline():
            block_asked = json.loads(line)
            _say(
                await _time(
                    rounds[block_asked["way"]], block_asked["rounds"], block_asked["rest_s"]
                )
            )


async def _time(once: Callable[[], Awaitable[None]], rounds: int, rest_s: float) -> list[float]:
    """Microseconds of one way, half of a round trip, of each round."""
    taken_us: list[float] = []
    for _ in range(rounds):
        if rest_s:
            await asyncio.sleep(rest_s)
        started_ns = time.perf_counter_ns()
        await once()
        taken_us.append((time.perf_counter_ns() - started_ns) / 2e3)
    return taken_us


def main() -> None:
    """Run one end until standard input ends."""
    # Standard output is for answers.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        import uvloop

        loop_factory = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    folder, role, size_bytes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run((_echo if role == "echo" else _ask)(folder, size_bytes))


if __name__ == "__main__":
    main()
