"""A stream to one peer: used for sending only, from its first message to its break.

An `OutgoingStream` lives once: queueing, then connecting, then open, then broken. Whoever wants to
send to the peer again makes a new one, so a break is told exactly once and nothing of an old
connection can get into a new one.

A peer that is there but does not read is noticed by its silence: an open stream that heard nothing
for `keep_alive_s` asks, and breaks after `silence_timeout_s` in which neither an answer came nor
the peer's kernel took any byte. The second condition keeps a slow link, on which the question
stands behind megabytes of activations, from looking like a dead peer. Time is counted in ticks of
this process's own life, so waking from a suspension does not look like one either.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.ids import NodeId
from p2pllm.domain.messages import Goodbye, Hello
from p2pllm.domain.records import Address
from p2pllm.net.connection import FrameConnection, greet, join_parts
from p2pllm.net.limits import StreamLimits
from p2pllm.net.sockets import unacknowledged_bytes
from p2pllm.wire.control import KeepAlive
from p2pllm.wire.frames import Part, frame_parts
from p2pllm.wire.tags import Greeting, OutgoingAnswer

WRITE_CHUNK_BYTES = 256 * 1024
"""How much is encrypted at once, some 0.2 ms; a large payload does not hold up the loop."""


class OutgoingStream:
    """See the module's docstring.

    Args:
        node: who must answer.
        addresses: where, best first.
        hello: what this node says of itself.
        identify: the node a TLS certificate names; raises AuthenticationError.
        context: TLS as a client, with this node's certificate.
        limits: of the streams.
        on_broken: called once, never from within a call to this object.
    """

    def __init__(
        self,
        node: NodeId,
        addresses: tuple[Address, ...],
        hello: Hello,
        *,
        identify: Callable[[bytes], NodeId],
        context: ssl.SSLContext,
        limits: StreamLimits,
        on_broken: Callable[[OutgoingStream, str], None],
    ) -> None:
        self.node = node
        self.is_open = False
        self._addresses = addresses
        self._hello = hello
        self._identify = identify
        self._context = context
        self._limits = limits
        self._on_broken = on_broken
        self._queue: deque[Part] = deque()
        self._queued_bytes = 0
        self._connection: OutgoingConnection | None = None
        self._is_broken = False
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finish_reason: str | None = None
        self._silent_s = 0.0
        self._unanswered = False
        self._accepted_bytes = 0
        self._taken_bytes = 0  # By the peer's kernel, at the last tick.

    @property
    def queued_bytes(self) -> int:
        """Accepted but not yet given to TLS."""
        return self._queued_bytes

    def send(self, message: Any) -> None:
        """Queue, and write what can be written.

        Raises:
            LocalProtocolError: the message breaks the protocol.
        """
        parts = join_parts(frame_parts(message))
        if self._is_broken:
            return
        self._queue.extend(parts)
        size = sum(map(len, parts))
        self._queued_bytes += size
        self._accepted_bytes += size
        if self.is_open:
            self._flush()
        if (
            self._queued_bytes > self._limits.queue_bytes_max
            or len(self._queue) > self._limits.queue_frames_max
        ):
            self.break_off(f"it is too far behind: {self._queued_bytes} bytes wait")

    async def connect(self) -> None:
        """Try the addresses in turn until the peer has greeted; on failure, break."""
        detail = "no address of it is known"
        for address in self._addresses:
            if self._is_broken:
                return
            problem = await self._attempt(address)
            if problem is None:
                self._start()
                return
            detail = f"{address}: {problem}"
        self.break_off(detail)

    def finish(self, reason: str) -> None:
        """Send what is queued, say goodbye, close; the break is told as usual."""
        self._finish_reason = reason
        if self.is_open:
            self._flush()

    def break_off(self, detail: str) -> None:
        """Drop what is queued, close at once, tell it."""
        if self._is_broken:
            return
        self._is_broken = True
        self.is_open = False
        self.broken.set_result(None)
        self._queue.clear()
        self._queued_bytes = 0
        if self._connection is not None:
            self._connection.abort(detail)
        asyncio.get_running_loop().call_soon(self._on_broken, self, detail)

    def tick(self, elapsed_s: float) -> None:
        """`elapsed_s` of this process's own life passed."""
        connection = self._connection
        if not self.is_open or connection is None:
            return
        # What TLS adds makes this a little too low, never higher than it was without progress.
        taken = self._accepted_bytes - self._queued_bytes - connection.outstanding_bytes()
        if connection.is_alive or taken > self._taken_bytes:
            self._silent_s = 0.0
            self._unanswered = self._unanswered and not connection.is_alive
        else:
            self._silent_s += elapsed_s
        connection.is_alive = False
        self._taken_bytes = taken
        if self._silent_s > self._limits.silence_timeout_s:
            self.break_off(f"it has been silent for {self._silent_s:.1f} s")
        elif self._silent_s >= self._limits.keep_alive_s and not self._unanswered:
            self._unanswered = True
            self.send(KeepAlive())

    async def _attempt(self, address: Address) -> str | None:
        """Connect to one address; the problem in words, or None."""
        loop = asyncio.get_running_loop()
        connection = OutgoingConnection(self, self._limits)
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                await loop.create_connection(
                    lambda: connection,
                    address.host,
                    address.port,
                    ssl=self._context,
                    server_hostname="",
                    ssl_shutdown_timeout=self._limits.shutdown_timeout_s,
                )
                problem = await connection.greeted
        except TimeoutError:
            problem = f"no answer within {self._limits.connect_timeout_s:g} s"
        except ssl.SSLError as error:
            problem = f"TLS failed: {error.reason or error}"
        except OSError as error:
            problem = error.strerror or str(error)
        except BaseException:
            connection.abort("cancelled")
            raise
        if problem is not None:
            if not connection.is_closing:
                connection.abort(problem)
            return problem
        self._connection = connection
        return None

    def _start(self) -> None:
        """The peer has greeted."""
        assert self._connection is not None
        if self._connection.is_closing:
            self.break_off("the connection was closed")
        elif self._is_broken:
            self._connection.abort("given up")
        else:
            self.is_open = True
            self._flush()

    def _flush(self) -> None:
        connection = self._connection
        assert connection is not None
        queue, transport = self._queue, connection.transport
        while queue and not connection.is_paused and not connection.is_closing:
            part = queue[0]
            if len(part) <= WRITE_CHUNK_BYTES:
                queue.popleft()
            else:
                queue[0] = memoryview(part)[WRITE_CHUNK_BYTES:]
                part = memoryview(part)[:WRITE_CHUNK_BYTES]
            self._queued_bytes -= len(part)
            transport.write(part)
        if not queue and self._finish_reason is not None:
            connection.finish(self._finish_reason)

    # What the connection tells.

    def verify(self, certificate: bytes | None, hello: Hello | None) -> None:
        """Check what the peer shows.

        Raises:
            AuthenticationError: it is not who was dialled.
            RemoteProtocolError: no protocol version is spoken by both.
        """
        if hello is not None:
            greet(self._hello, hello, self.node)
        elif certificate is None or self._identify(certificate) != self.node:
            raise AuthenticationError("another node answers there")

    def hello(self) -> Hello:
        """What to greet with."""
        return self._hello

    def resume(self) -> None:
        """The kernel takes more."""
        if self.is_open:
            self._flush()

    def lost(self, connection: OutgoingConnection, detail: str) -> None:
        """The connection ended."""
        if connection is self._connection:
            self.break_off(detail)


class OutgoingConnection(FrameConnection):
    """The dialler's end of a connection."""

    def __init__(self, stream: OutgoingStream, limits: StreamLimits) -> None:
        super().__init__(Greeting, limits)
        self.greeted: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._stream = stream

    def opened(self) -> None:
        """Check whom TLS reached before anything is said."""
        self._stream.verify(self.certificate(), None)
        self.write(self._stream.hello())

    def message_received(self, message: Any) -> None:
        """The greeting, then signs of life."""
        if isinstance(message, Goodbye):
            self._detail = f"it closed the stream: {message.reason}"
            self.abort(self._detail)
        elif isinstance(message, Hello):
            self._stream.verify(None, message)
            self.expect(OutgoingAnswer)
            self.greeted.set_result(None)

    def finish(self, reason: str) -> None:
        """Whoever waits for the greeting need not wait for the end of the connection."""
        super().finish(reason)
        if not self.greeted.done():
            self.greeted.set_result(reason)

    def written(self) -> None:
        """More of the queue can go."""
        self._stream.resume()

    def closed(self, detail: str) -> None:
        """Tell whoever waits."""
        if not self.greeted.done():
            self.greeted.set_result(detail)
        self._stream.lost(self, detail)

    def outstanding_bytes(self) -> int:
        """Written, but not yet taken by the peer's kernel."""
        raw = self.transport.get_extra_info("socket")
        kernel = unacknowledged_bytes(raw.fileno()) if raw is not None else 0
        return self.transport.get_write_buffer_size() + kernel
