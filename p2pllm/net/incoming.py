"""Connections from others: peers that send, members that renew, and strangers that want to join.

accept -> TLS handshake -> certificate -> Hello:        peer, messages and keep-alives follow
                                       -> EnrolRequest: the enrolment exchange, nothing else
                        -> none:                        the enrolment exchange, nothing else

A member's certificate is valid, or TLS would have failed; so the exchange is told who asks.

Anyone who reaches the port can come as far as the handshake, so each step up to the greeting is
bounded in number, size and time; see `StreamLimits`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from p2pllm.domain.enrolment import EnrolmentMessage, EnrolRefusal, EnrolRequest
from p2pllm.domain.errors import AuthenticationError, RemoteProtocolError
from p2pllm.domain.ids import NodeId, short
from p2pllm.domain.messages import Goodbye, Hello
from p2pllm.net.connection import FrameConnection, greet
from p2pllm.net.limits import StreamLimits
from p2pllm.net.sockets import source_address
from p2pllm.wire.control import KeepAlive, KeepAliveAck
from p2pllm.wire.frames import PEER_LIMITS
from p2pllm.wire.tags import IncomingMessage, Opening

_log = structlog.stdlib.get_logger(__name__)

LOG_INTERVAL_S = 10.0
"""A flood of bad connections makes one line in that time."""


class EnrolmentExchange(Protocol):
    """A join or a renewal, seen from the side that may grant it, without I/O.

    See `p2pllm.domain.enrolment`.
    """

    @property
    def finished(self) -> bool:
        """Nothing more is to be said."""
        ...

    def receive(self, message: EnrolmentMessage) -> list[EnrolmentMessage]:
        """What to answer.

        Raises:
            AuthenticationError: close the connection.
            RemoteProtocolError: close the connection.
        """
        ...


class _Door:
    """How many enrolments of one kind may begin: a bound on their rate and on those under way."""

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._tokens = float(limits.enrolments_max)

    def tick(self, elapsed_s: float) -> None:
        refilled = self._tokens + elapsed_s * self._limits.enrolments_per_s
        self._tokens = min(float(self._limits.enrolments_max), refilled)

    def enter(self, under_way: int) -> bool:
        if under_way >= self._limits.enrolments_max or self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Listener:
    """Accepts connections and keeps them.

    Args:
        listener: a bound, listening, non-blocking TCP socket; closed at the end.
        hello: what this node says of itself.
        identify: the node a TLS certificate names; raises AuthenticationError.
        context: TLS as a server that asks for a client certificate but lets in without.
        on_message: gets each message of each peer.
        enrolment: makes the exchange for a stranger (None) or a member that renews; None where
            this node cannot let anybody in.
        limits: of the streams.
    """

    def __init__(
        self,
        listener: socket.socket,
        hello: Hello,
        *,
        identify: Callable[[bytes], NodeId],
        context: ssl.SSLContext,
        on_message: Callable[[NodeId, Any], None],
        enrolment: Callable[[NodeId | None], EnrolmentExchange] | None,
        limits: StreamLimits,
    ) -> None:
        self.hello = hello
        self.identify = identify
        self.context = context
        self.on_message = on_message
        self.enrolment = enrolment
        self.limits = limits
        self.refused_total = 0
        self._listener = listener
        self._connections: dict[IncomingConnection, None] = {}  # In order of arrival.
        self._peers: dict[NodeId, IncomingConnection] = {}  # Greeted; one per node.
        # In order of arrival; with the socket until a transport owns it.
        self._handshakes: dict[asyncio.Task[None], socket.socket | None] = {}
        # Apart, so that no crowd of strangers keeps members from renewing.
        self._stranger_door = _Door(limits)
        self._member_door = _Door(limits)
        self._quiet_s = LOG_INTERVAL_S
        self._refused_silently = 0

    async def accept(self, tasks: asyncio.TaskGroup) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, source = await loop.sock_accept(self._listener)
            except OSError as error:
                # Out of descriptors, or the connection died in the backlog: neither ends us.
                self.refused("unknown", f"accept failed: {error.strerror}")
                await asyncio.sleep(0.1)
                continue
            if len(self._connections) + len(self._handshakes) >= self.limits.incoming_max:
                accepted.close()
                self.refused(str(source_address(source)), "too many connections")
                continue
            if len(self._handshakes) >= self.limits.handshakes_max:
                next(iter(self._handshakes)).cancel()
            task = tasks.create_task(self._handshake(accepted, str(source_address(source))))
            self._handshakes[task] = accepted
            task.add_done_callback(self._handshake_done)

    def _handshake_done(self, task: asyncio.Task[None]) -> None:
        left = self._handshakes.pop(task)
        if left is not None:  # The task was cancelled before its first step.
            left.close()

    async def _handshake(self, accepted: socket.socket, source: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handshakes[task] = None
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: IncomingConnection(self),
                accepted,
                ssl=self.context,
                ssl_handshake_timeout=self.limits.handshake_timeout_s,
                ssl_shutdown_timeout=self.limits.shutdown_timeout_s,
            )
        except ssl.SSLError as error:
            self.refused(source, f"TLS failed: {error.reason or error}")
        except OSError as error:
            self.refused(source, str(error.strerror or error or "the handshake took too long"))
        except asyncio.CancelledError:
            self.refused(source, "the handshake was cut off")
            raise

    def tick(self, elapsed_s: float) -> None:
        """`elapsed_s` of this process's own life passed."""
        self._stranger_door.tick(elapsed_s)
        self._member_door.tick(elapsed_s)
        self._quiet_s += elapsed_s
        for connection in tuple(self._connections):
            connection.tick(elapsed_s)

    def disconnect(self, node: NodeId, reason: str) -> None:
        """Close what `node` opened, greeted or not."""
        for connection in tuple(self._connections):
            if connection.node == node:
                connection.finish(reason)

    def close(self, reason: str) -> list[asyncio.Future[None]]:
        """Accept no more, say goodbye to all; await the futures, then `abort`."""
        self._listener.close()
        for task in tuple(self._handshakes):
            task.cancel()
        for connection in tuple(self._connections):
            connection.finish(reason)
        return [connection.lost for connection in self._connections]

    def abort(self) -> None:
        """End what is left."""
        for connection in tuple(self._connections):
            connection.abort("this node stops")

    # What connections call.

    def add(self, connection: IncomingConnection) -> None:
        """TLS stands."""
        self._connections[connection] = None

    def greeted(self, connection: IncomingConnection, node: NodeId) -> None:
        """A peer is known; an older connection of its is a left-over."""
        older = self._peers.get(node)
        self._peers[node] = connection
        if older is not None:
            older.abort("replaced by a newer connection")

    def remove(self, connection: IncomingConnection, node: NodeId | None) -> None:
        """It ended."""
        self._connections.pop(connection, None)
        if node is not None and self._peers.get(node) is connection:
            del self._peers[node]

    def admit(self, node: NodeId | None) -> EnrolmentExchange:
        """An exchange for a stranger (None), or for a member that has shown its certificate.

        Raises:
            AuthenticationError: this node grants nothing, or too many ask.
        """
        is_member = node is not None
        under_way = sum(
            connection.is_enrolling and (connection.node is not None) == is_member
            for connection in self._connections
        )
        door = self._member_door if is_member else self._stranger_door
        if self.enrolment is None:
            raise AuthenticationError(
                "this member cannot let anybody in; use the address of the node that made the "
                "invite",
                code="cannot_admit",
            )
        if not door.enter(under_way):
            raise AuthenticationError(
                "too many join at once; try again in some seconds", code="busy"
            )
        return self.enrolment(node)

    def refused(self, source: str, reason: str) -> None:
        """Count, and log if the last line is not too recent."""
        self.refused_total += 1
        if self._quiet_s < LOG_INTERVAL_S:
            self._refused_silently += 1
            return
        _log.warning(
            "connection_refused", source=source, reason=reason, unlogged=self._refused_silently
        )
        self._quiet_s, self._refused_silently = 0.0, 0


class IncomingConnection(FrameConnection):
    """The listener's end of a connection."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(Opening, listener.limits)
        self.node: NodeId | None = None  # Whom the certificate names.
        self.is_enrolling = False  # Nothing but an exchange happens here, or was refused.
        self._listener = listener
        self._is_greeted = False
        self._exchange: EnrolmentExchange | None = None
        self._silent_s = 0.0
        self._age_s = 0.0

    def opened(self) -> None:
        """Member or stranger?"""
        self._listener.add(self)
        certificate = self.certificate()
        if certificate is None:
            self._begin_exchange()
        else:
            self.node = self._listener.identify(certificate)

    def message_received(self, message: Any) -> None:
        """Exchange, greeting or message."""
        if self._exchange is not None:
            self._enrol(self._exchange, message)
        elif isinstance(message, EnrolRequest):
            self._enrol(self._begin_exchange(), message)
        elif isinstance(message, KeepAlive):
            self.write(KeepAliveAck())
        elif isinstance(message, Goodbye):
            self.abort(message.reason)
        elif self.node is None:
            raise RemoteProtocolError("nobody speaks here")
        elif self._is_greeted:
            self._listener.on_message(self.node, message)
        else:
            greet(self._listener.hello, message, self.node)
            self._is_greeted = True
            self.write(self._listener.hello)
            self.expect(IncomingMessage, PEER_LIMITS)
            self._listener.greeted(self, self.node)
            _log.debug("peer_connected", node=short(self.node), software=message.software)

    def _begin_exchange(self) -> EnrolmentExchange:
        try:
            exchange = self._exchange = self._listener.admit(self.node)
        except AuthenticationError as error:
            self.write(EnrolRefusal(error.code, str(error)))
            raise
        finally:
            self.is_enrolling = True
        self.expect(EnrolmentMessage)
        return exchange

    def _enrol(self, exchange: EnrolmentExchange, message: EnrolmentMessage) -> None:
        for answer in exchange.receive(message):
            self.write(answer)
        if exchange.finished:
            self.is_closing = True
            self.transport.close()

    def finish(self, reason: str) -> None:
        """Who enrols knows no Goodbye: it is closed; what it did is logged like for peers."""
        if self.is_enrolling and not self.is_closing:
            self._detail = reason
            self.is_closing = True
            self.transport.close()
        else:
            super().finish(reason)

    def pause_writing(self) -> None:
        """The peer asks for signs of life and does not read them."""
        self.abort("it does not read its answers")

    def tick(self, elapsed_s: float) -> None:
        """Look after the timeouts."""
        self._age_s += elapsed_s
        self._silent_s = 0.0 if self.is_alive else self._silent_s + elapsed_s
        self.is_alive = False
        if self.is_enrolling:
            if self._age_s > self.limits.enrolment_timeout_s:
                self.abort("the enrolment took too long")
        elif not self._is_greeted:
            if self._age_s > self.limits.greeting_timeout_s:
                self.abort("no greeting came")
        elif self._silent_s > self.limits.incoming_silence_timeout_s:
            self.abort("it fell silent")

    def closed(self, detail: str) -> None:
        """Forget it, and log what whoever was not let in did."""
        self._listener.remove(self, self.node)
        finished = self._exchange is not None and self._exchange.finished
        if self.is_enrolling and self.node is not None:
            # Members ask around for one that can renew, so to refuse them is nothing unusual.
            _log.debug("renewal_ended", node=short(self.node), finished=finished, detail=detail)
        elif not self._is_greeted and not finished:
            self._listener.refused(self.source, detail)
        elif self.node is not None:
            _log.debug("peer_disconnected", node=short(self.node), detail=detail)
