"""Datagrams: UDP beside the streams, sealed, decoded, with the signatures in them proven.

    received -> opened by the sealer -> decoded -> records verified -> on_message

What fails at one of these steps is counted and forgotten.

Nothing is ever answered here, so a stranger's datagram costs one failed opening and gets nothing
back. The loop takes one datagram at a time (a few under uvloop) between other work, and what comes
faster waits in the kernel's buffer and is lost beyond it: gossip is made for that.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import socket
import typing
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, Self

import structlog

from p2pllm.domain.errors import AuthenticationError, RemoteProtocolError
from p2pllm.domain.gossip import DATAGRAM_BYTES_MAX, GossipMessage, Signed
from p2pllm.domain.ids import NodeId
from p2pllm.domain.records import Address
from p2pllm.net.sockets import source_address
from p2pllm.wire.datagrams import decode_datagram, encode_datagram

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

KERNEL_BUFFER_BYTES: Final = 1024 * 1024
"""Some 800 datagrams: a burst from every peer of a large swarm while the loop is busy."""

UNSENT_BYTES_MAX: Final = 256 * 1024
"""What may wait while the kernel takes nothing; a later datagram is dropped, as the net would."""

LOOKUPS_MAX: Final = 16
"""Names being looked up at once; only what users wrote into `--join` is a name."""

ADDRESSES_CACHED: Final = 4_096


class Sealer(Protocol):
    """Encrypts datagrams and proves that their sender is a member."""

    def seal(self, payload: bytes) -> bytes:
        """The datagram."""
        ...

    def open(self, data: bytes) -> tuple[NodeId, bytes]:
        """Who sealed it, and the payload.

        Raises:
            AuthenticationError: no member did, or it came before.
        """
        ...


class DatagramEndpoint:
    """Sends and receives `GossipMessage`s; `async with` starts receiving.

    Args:
        bound: a UDP socket from `p2pllm.net.sockets.bind_ports`; closed at the end.
        sealer: of this node.
        verify: whether a member signed a record and may; records that do not pass are taken out
            of a message, so one bad record does not hold up its neighbours.
        on_message: gets (sender, source, message); runs on the loop and must not raise.

    Attributes:
        received_total: messages handed on.
        sent_total: datagrams given to the kernel.
        garbage_total: datagrams that were too long, not sealed by a member, or copies.
        malformed_total: sealed by a member, but not a message.
        unverified_total: records taken out.
        unsent_total: datagrams that could not be sent.
    """

    def __init__(
        self,
        bound: socket.socket,
        *,
        sealer: Sealer,
        verify: Callable[[Signed[Any]], bool],
        on_message: Callable[[NodeId, Address, GossipMessage], None],
    ) -> None:
        self._socket = bound
        self._family = bound.family
        self._port = int(bound.getsockname()[1])
        self._sealer = sealer
        self._verify = verify
        self._on_message = on_message
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks = asyncio.TaskGroup()
        self._lookups: dict[Address, asyncio.Task[None]] = {}
        self._numeric = functools.lru_cache(ADDRESSES_CACHED)(self._parse)
        self.received_total = 0
        self.sent_total = 0
        self.garbage_total = 0
        self.malformed_total = 0
        self.unverified_total = 0
        self.unsent_total = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def send(self, address: Address, message: GossipMessage) -> None:
        """Send, unreliably; a name is looked up first.

        Raises:
            LocalProtocolError: the message breaks the protocol or is too long: a bug of ours.
        """
        data = self._sealer.seal(encode_datagram(message))
        try:
            target = self._numeric(address)
        except (OSError, UnicodeError):
            self._look_up(address, data)
        else:
            self._send(data, target)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Receiver(self), sock=self._socket
        )
        self._transport = transport
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in tuple(self._lookups.values()):
            task.cancel()
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            await self._tasks.__aexit__(kind, error, trace)
        else:  # The caller's own error goes on as it is, not as a group of one.
            await self._tasks.__aexit__(None, None, None)
        await asyncio.sleep(0)  # Let the transport close its socket.

    def receive(self, data: bytes, source: Address) -> None:
        """Take one datagram as it came from the network."""
        if len(data) > DATAGRAM_BYTES_MAX:
            self.garbage_total += 1
            return
        try:
            sender, body = self._sealer.open(data)
        except AuthenticationError:
            self.garbage_total += 1
            return
        try:
            message = self._proven(decode_datagram(body))
        except RemoteProtocolError as error:
            self.malformed_total += 1
            _log.debug("datagram_malformed", source=str(source), reason=str(error))
            return
        self.received_total += 1
        self._on_message(sender, source, message)

    def _proven(self, message: GossipMessage) -> GossipMessage:
        """The message without the records nobody vouches for."""
        changes: dict[str, Any] = {}
        for name in _signed_fields(type(message)):
            records: tuple[Signed[Any], ...] = getattr(message, name)
            proven = tuple([record for record in records if self._verify(record)])
            if len(proven) != len(records):
                self.unverified_total += len(records) - len(proven)
                changes[name] = proven
        return dataclasses.replace(message, **changes) if changes else message

    def _parse(self, address: Address) -> Any:
        """A socket address of our family; OSError where the host is a name or of another one."""
        found = socket.getaddrinfo(
            address.host,
            address.port,
            self._family,
            socket.SOCK_DGRAM,
            flags=socket.AI_NUMERICHOST | socket.AI_V4MAPPED,
        )
        return found[0][4]

    def _send(self, data: bytes, target: Any) -> None:
        transport = self._transport
        # Both loops' transports have the method; asyncio's base class does not promise it.
        waiting = transport.get_write_buffer_size() if transport else 0  # pyright: ignore[reportAttributeAccessIssue]
        if transport is None or waiting > UNSENT_BYTES_MAX:
            self.unsent_total += 1
            return
        try:
            transport.sendto(data, target)
        except (OSError, ValueError):
            self.unsent_total += 1  # No such network from here: what SWIM is there to find out.
        else:
            self.sent_total += 1

    def _look_up(self, address: Address, data: bytes) -> None:
        if self._transport is None or address in self._lookups or len(self._lookups) >= LOOKUPS_MAX:
            self.unsent_total += 1
            return
        self._lookups[address] = task = self._tasks.create_task(self._resolve(address, data))
        task.add_done_callback(lambda _: self._lookups.pop(address, None))

    async def _resolve(self, address: Address, data: bytes) -> None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                address.host,
                address.port,
                family=self._family,
                type=socket.SOCK_DGRAM,
                flags=socket.AI_V4MAPPED,
            )
        except (OSError, UnicodeError):
            self.unsent_total += 1
        else:
            self._send(data, found[0][4])


class _Receiver(asyncio.DatagramProtocol):
    """Hands datagrams to the endpoint."""

    def __init__(self, endpoint: DatagramEndpoint) -> None:
        self._endpoint = endpoint

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._endpoint.receive(data, source_address(addr))

    def error_received(self, exc: Exception) -> None:
        self._endpoint.unsent_total += 1  # An ICMP answer to something sent: SWIM's business.


@functools.cache
def _signed_fields(cls: type) -> tuple[str, ...]:
    """Which fields of a message are tuples of signed records."""
    hints = typing.get_type_hints(cls)
    return tuple(
        name
        for name, hint in hints.items()
        if typing.get_origin(hint) is tuple
        and any(_mentions_signed(item) for item in typing.get_args(hint))
    )


def _mentions_signed(annotation: Any) -> bool:
    if typing.get_origin(annotation) is Signed:
        return True
    return any(_mentions_signed(item) for item in typing.get_args(annotation))
