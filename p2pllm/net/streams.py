"""Streams between peers: TLS 1.3, both sides authenticated, pinned to node ids.

Each node dials the peers it wants to send to, and a connection carries messages from its dialler
only; the other direction has the greeting and signs of life. Two nodes that speak to each other
have two connections. So there is no question which of two survives when both dial at once, a
break is seen by the one whose messages it lost, and the order per sender is the order of sending.

    dialler                              listener
    TLS: certificate is the dialled node's; client certificate names a member
    Hello  ------------------------------->
           <-------------------------------  Hello, or Goodbye and why
    messages ----------------------------->
    KeepAlive ---------------------------->  after a second of silence
           <-------------------------------  KeepAliveAck
    Goodbye ------------------------------>  either side, at the end

| module | what |
| --- | --- |
| `connection` | frames over one TLS connection |
| `outgoing` | queue, connect, write, notice silence |
| `incoming` | accept, greet or enrol, receive |
| this | one outgoing stream per peer, one clock for all timeouts |
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import structlog

from p2pllm.domain.ids import NodeId, short
from p2pllm.domain.messages import Hello
from p2pllm.domain.records import Address
from p2pllm.net.incoming import EnrolmentExchange, Listener
from p2pllm.net.limits import StreamLimits
from p2pllm.net.outgoing import OutgoingStream

_log = structlog.stdlib.get_logger(__name__)

TICKS_PER_KEEP_ALIVE = 4
"""How finely timeouts are kept."""


class PeerStreams:
    """All streams of a node; `async with` starts accepting.

    Callbacks run on the loop, one at a time, never from within a call to this object.

    Args:
        self_hello: what this node says of itself.
        listener: from `p2pllm.net.sockets.bind_ports` or `bind_stream`; closed at the end.
        server_context: TLS 1.3 with this node's certificate, asking for a client's
            (`CERT_OPTIONAL`).
        client_context: TLS 1.3 with this node's certificate, without a check of host names.
        own_certificate: what `server_context` shows, in DER.
        identify: the node a peer's certificate (DER) names; raises AuthenticationError for one
            that is not, or no longer, a member's.
        on_message: gets (sender, message) of `p2pllm.wire.tags.PeerMessage`.
        on_unreachable: gets (node, why) once for each stream that broke or could not be opened;
            what was sent since the last such call may be lost.
        enrolment: makes the exchange for whoever asks to be enrolled, given `own_certificate` and
            the member that asks to renew, or None for a stranger; without it both are refused.
        limits: what all this may take.
    """

    def __init__(
        self,
        self_hello: Hello,
        *,
        listener: socket.socket,
        server_context: ssl.SSLContext,
        client_context: ssl.SSLContext,
        own_certificate: bytes,
        identify: Callable[[bytes], NodeId],
        on_message: Callable[[NodeId, Any], None],
        on_unreachable: Callable[[NodeId, str], None],
        enrolment: Callable[[bytes, NodeId | None], EnrolmentExchange] | None = None,
        limits: StreamLimits | None = None,
    ) -> None:
        self._hello = self_hello
        self._limits = limits or StreamLimits()
        self._identify = identify
        self._client_context = client_context
        self._own_certificate = own_certificate
        self._on_unreachable = on_unreachable
        self._enrolment = enrolment
        self._port = int(listener.getsockname()[1])
        self._listener = Listener(
            listener,
            self_hello,
            identify=identify,
            context=server_context,
            on_message=on_message,
            enrolment=None if enrolment is None else self._make_exchange,
            limits=self._limits,
        )
        self._outgoing: dict[NodeId, OutgoingStream] = {}  # All and only those not broken.
        self._tasks = asyncio.TaskGroup()
        self._connecting: dict[asyncio.Task[None], None] = {}
        self._service: list[asyncio.Task[None]] = []
        self._is_running = False

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def refused_total(self) -> int:
        """Connections closed before they were a member's or a finished join."""
        return self._listener.refused_total

    def connected(self) -> list[NodeId]:
        """Peers with an open outgoing stream."""
        return [node for node, stream in self._outgoing.items() if stream.is_open]

    def queued_bytes(self, node: NodeId) -> int:
        """What waits to be written to a peer."""
        stream = self._outgoing.get(node)
        return stream.queued_bytes if stream else 0

    def send(self, node: NodeId, addresses: tuple[Address, ...], message: Any) -> None:
        """Send, connecting first if there is no stream; a failure comes by `on_unreachable`.

        Args:
            node: to whom; another who answers at the addresses gets nothing.
            addresses: where to try, in order, if there is no stream.
            message: one of `p2pllm.wire.tags.PeerMessage`; its activation must not be changed
                any more.

        Raises:
            LocalProtocolError: the message breaks the protocol: a bug of ours.
        """
        if self._is_running:
            self._stream(node, addresses).send(message)

    def watch(self, node: NodeId, addresses: tuple[Address, ...]) -> None:
        """Have a stream, so that its end is noticed; its end comes by `on_unreachable`."""
        if self._is_running:
            self._stream(node, addresses)

    def disconnect(self, node: NodeId, reason: str) -> None:
        """Cut a peer off, both ways; for one that was revoked."""
        self._listener.disconnect(node, reason)
        stream = self._outgoing.get(node)
        if stream is not None:
            stream.break_off(reason)

    def renew(
        self,
        server_context: ssl.SSLContext,
        client_context: ssl.SSLContext,
        own_certificate: bytes,
    ) -> None:
        """Use a new certificate for connections from now on."""
        self._listener.context = server_context
        self._client_context = client_context
        self._own_certificate = own_certificate

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._is_running = True
        self._service = [
            self._tasks.create_task(self._listener.accept(self._tasks)),
            self._tasks.create_task(self._keep_time()),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_running = False
        for task in self._service:
            task.cancel()
        await asyncio.gather(*self._service, return_exceptions=True)
        waiting = self._listener.close("this node stops")
        for stream in tuple(self._outgoing.values()):
            stream.finish("this node stops")
            waiting.append(stream.broken)
        if waiting:
            await asyncio.wait(waiting, timeout=self._limits.shutdown_timeout_s)
        for stream in tuple(self._outgoing.values()):
            stream.break_off("this node stops")
        self._listener.abort()
        for task in tuple(self._connecting):
            task.cancel()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            await self._tasks.__aexit__(kind, error, trace)
        else:  # The caller's own error goes on as it is, not as a group of one.
            await self._tasks.__aexit__(None, None, None)
        await asyncio.sleep(0)  # Let aborted transports say that they are lost.

    def _stream(self, node: NodeId, addresses: tuple[Address, ...]) -> OutgoingStream:
        stream = self._outgoing.get(node)
        if stream is None:
            stream = self._outgoing[node] = OutgoingStream(
                node,
                addresses,
                self._hello,
                identify=self._identify,
                context=self._client_context,
                limits=self._limits,
                on_broken=self._broken,
            )
            task = self._tasks.create_task(stream.connect())
            self._connecting[task] = None
            task.add_done_callback(lambda done: self._connecting.pop(done, None))
        return stream

    def _broken(self, stream: OutgoingStream, detail: str) -> None:
        if self._outgoing.get(stream.node) is stream:
            del self._outgoing[stream.node]
        if self._is_running:
            _log.info("peer_unreachable", node=short(stream.node), detail=detail)
            self._on_unreachable(stream.node, detail)

    def _make_exchange(self, member: NodeId | None) -> EnrolmentExchange:
        assert self._enrolment is not None
        return self._enrolment(self._own_certificate, member)

    async def _keep_time(self) -> None:
        """Tick; a process that was suspended counts one long tick as two usual ones."""
        loop = asyncio.get_running_loop()
        interval_s = self._limits.keep_alive_s / TICKS_PER_KEEP_ALIVE
        before_s = loop.time()
        while True:
            await asyncio.sleep(interval_s)
            now_s = loop.time()
            elapsed_s = min(now_s - before_s, 2 * interval_s)
            before_s = now_s
            for stream in tuple(self._outgoing.values()):
                stream.tick(elapsed_s)
            self._listener.tick(elapsed_s)
