"""One TLS connection that carries frames, from either side."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from p2pllm.domain.errors import AuthenticationError, RemoteProtocolError
from p2pllm.domain.messages import DETAIL_LENGTH_MAX, Goodbye, Hello
from p2pllm.net.limits import StreamLimits
from p2pllm.net.sockets import source_address
from p2pllm.wire.frames import GREETING_LIMITS, FrameDecoder, FrameLimits, Part, frame_parts

JOIN_BYTES_MAX = 64 * 1024
"""Up to here header and payload go out as one write; copying is cheaper than a second record."""


class FrameConnection(asyncio.BufferedProtocol):
    """Frames in, frames out; subclasses say what they mean.

    A subclass gets `opened`, then `message_received` for each message, then `closed` exactly once
    with a line for people. Errors raised in the first two as `RemoteProtocolError` or
    `AuthenticationError` are the peer's: they are told to it in a Goodbye, and the connection ends.

    Args:
        expected: what may come first; `expect` changes it.
        limits: of the streams.
    """

    def __init__(self, expected: Any, limits: StreamLimits) -> None:
        self.limits = limits
        self.is_closing = False  # No more messages are given out, none can be written.
        self.is_paused = False  # The kernel is behind: write no more.
        self.is_alive = False  # Something came since the last tick.
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.source = "unknown"  # Where the peer is, for log lines.
        self._decoder = FrameDecoder(expected, GREETING_LIMITS)
        self._transport: asyncio.Transport | None = None
        self._detail = "the connection was closed"

    @property
    def transport(self) -> asyncio.Transport:
        """The TLS transport; only from `opened` on."""
        assert self._transport is not None
        return self._transport

    def opened(self) -> None:
        """TLS stands."""

    def message_received(self, message: Any) -> None:
        """A message of the expected union came."""
        raise NotImplementedError

    def closed(self, detail: str) -> None:
        """It is over."""

    def written(self) -> None:
        """The kernel can take more again."""

    def expect(self, expected: Any, limits: FrameLimits = GREETING_LIMITS) -> None:
        """Say what may come from the next frame on."""
        self._decoder.expect(expected, limits)

    def write(self, message: Any) -> None:
        """Send now; for small messages."""
        if not self.is_closing:
            self.transport.write(join_parts(frame_parts(message))[0])

    def finish(self, reason: str) -> None:
        """Say goodbye and close; what was written before still goes out."""
        if self.is_closing or self._transport is None:
            return
        self.write(Goodbye(shorten(reason)))
        self._detail = reason
        self.is_closing = True
        self.transport.close()

    def abort(self, detail: str) -> None:
        """End it at once."""
        if not self.lost.done():
            if not self.is_closing:
                self._detail = detail
            self.is_closing = True
            if self._transport is not None:
                self._transport.abort()

    def certificate(self) -> bytes | None:
        """The peer's TLS certificate in DER, if it showed one."""
        tls: ssl.SSLObject = self.transport.get_extra_info("ssl_object")
        return tls.getpeercert(binary_form=True)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS stands."""
        # A cast, since uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("peername")
        self.source = str(source_address(raw)) if raw else "unknown"
        self._transport.set_write_buffer_limits(high=self.limits.write_bytes_max)
        self._guarded(self.opened)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self.is_closing:
            return memoryview(bytearray(4_096))
        return self._decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` arrived there."""
        if self.is_closing:
            return
        self.is_alive = True
        self._decoder.received(nbytes)
        self._guarded(self._give_out)

    def pause_writing(self) -> None:
        """The kernel is behind."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_paused = False
        self.written()

    def connection_lost(self, exc: Exception | None) -> None:
        """The last call."""
        if not self.is_closing:
            self.is_closing = True
            if exc is not None:
                self._detail = f"the connection broke: {exc}"
        if not self.lost.done():
            self.lost.set_result(None)
            self.closed(self._detail)

    def _give_out(self) -> None:
        while not self.is_closing and (message := self._decoder.next()) is not None:
            self.message_received(message)

    def _guarded(self, step: Any) -> None:
        try:
            step()
        except (RemoteProtocolError, AuthenticationError) as error:
            self.finish(str(error))


def join_parts(parts: list[Part]) -> list[Part]:
    """A small frame as one piece of bytes, a large one as it is."""
    if len(parts) == 1 or sum(map(len, parts)) > JOIN_BYTES_MAX:
        return parts
    return [b"".join(parts)]


def shorten(reason: str) -> str:
    """A line that fits a Goodbye."""
    return reason.encode(errors="replace")[:DETAIL_LENGTH_MAX].decode(errors="ignore")


def greet(ours: Hello, theirs: Hello, node: str) -> int:
    """The protocol version to speak with a peer whose certificate names `node`.

    Raises:
        AuthenticationError: the peer says it is somebody else, or of another swarm.
        RemoteProtocolError: no version is spoken by both.
    """
    if theirs.node != node:
        raise AuthenticationError("the greeting names another node than the certificate")
    if theirs.swarm != ours.swarm:
        raise AuthenticationError("the peer belongs to another swarm")
    version = min(ours.version_max, theirs.version_max)
    if version < max(ours.version_min, theirs.version_min):
        raise RemoteProtocolError(
            f"no common protocol version: {ours.software} speaks {_versions(ours)}, "
            f"{theirs.software} speaks {_versions(theirs)}; update the older one"
        )
    return version


def _versions(hello: Hello) -> str:
    if hello.version_min == hello.version_max:
        return str(hello.version_max)
    return f"{hello.version_min} to {hello.version_max}"
