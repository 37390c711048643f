"""Messages on a stream: a fixed prefix, a msgpack header, and the raw bytes of an activation.

    0        4         8
    +--------+---------+------------------+-------------------------+
    | header | payload | header           | payload                 |
    | length | length  | [tag, fields]    | Activation.data, if any |
    +--------+---------+------------------+-------------------------+

Both lengths are unsigned 32-bit integers, big endian. The payload is the data of the activation in
the header, little endian elements, row after row; its length must be what the activation's type,
rows and columns say, which is checked before room for it is made. So a payload is written by the
kernel or by TLS straight into the buffer the engine will read.

The decoder is fed by a `BufferedProtocol`: `buffer()` says where the next bytes go, `received(n)`
how many came, and `next()` gives the messages that are complete, one at a time, so that a caller
may change `expected` and `limits` in between, as a stream goes from greeting to open.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from typing import Any, Final

from p2pllm.domain.errors import RemoteProtocolError
from p2pllm.domain.messages import Activation, Forward
from p2pllm.wire.codec import LocalProtocolError, decoder, encode

PREFIX: Final = struct.Struct("!II")
Part = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """The longest frame that is read.

    Attributes:
        header_bytes_max: of the msgpack header.
        payload_bytes_max: of the activation beside it.
    """

    header_bytes_max: int
    payload_bytes_max: int


PEER_LIMITS: Final = FrameLimits(
    # The longest message is a first Forward: 256 hops with a model's 128 letters would be 40 KiB,
    # 512 tokens, 300 biases and 64 stop tokens less than 10 KiB; the rest is for later versions.
    header_bytes_max=128 * 1024,
    # 512 rows of 32,768 float32 elements, more than any model that has been published.
    payload_bytes_max=64 * 1024 * 1024,
)
GREETING_LIMITS: Final = FrameLimits(header_bytes_max=4 * 1024, payload_bytes_max=0)
"""Before somebody is known to be a member: the longest is a grant of about 2 KiB."""

SCRATCH_BYTES: Final = 64 * 1024
"""How much is read at once where no payload is awaited; many small frames fit."""


def frame_parts(message: Any, limits: FrameLimits = PEER_LIMITS) -> list[Part]:
    """The bytes to write, in order; an activation's data is passed on uncopied.

    Raises:
        LocalProtocolError: the message or its activation breaks the protocol.
    """
    header = encode(message)
    activation = message.activation if type(message) is Forward else None
    if len(header) > limits.header_bytes_max:
        raise LocalProtocolError(f"a header of {len(header)} bytes is too long")
    if activation is None:
        return [PREFIX.pack(len(header), 0) + header]
    data = memoryview(activation.data).cast("B")
    if data.nbytes != activation.size_bytes:
        raise LocalProtocolError(
            f"an activation of {activation.size_bytes} bytes has {data.nbytes}"
        )
    if data.nbytes > limits.payload_bytes_max:
        raise LocalProtocolError(f"an activation of {data.nbytes} bytes is too long")
    return [PREFIX.pack(len(header), data.nbytes) + header, data]


class FrameDecoder:
    """Bytes in, messages out; see the module's docstring.

    After a `RemoteProtocolError` nothing more can be read: close the stream.

    Args:
        expected: union of the message classes that may come.
        limits: how long frames may be.
    """

    def __init__(self, expected: Any, limits: FrameLimits) -> None:
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._start = 0  # Bytes of the scratch buffer before this one are used up.
        self._stop = 0  # Bytes from this one on are free.
        self._header_length: int | None = None  # None: a prefix comes next.
        self._payload_length = 0
        self._waiting: Any = None  # The message whose payload is awaited.
        self._payload: memoryview | None = None
        self._filled = 0
        self.expect(expected, limits)

    def expect(self, expected: Any, limits: FrameLimits) -> None:
        """Say what may come from the next frame on."""
        self._decode = decoder(expected)
        self._limits = limits

    def buffer(self) -> memoryview:
        """Where to put bytes that arrive; never empty."""
        if self._payload is not None:
            return self._payload[self._filled :]
        return self._view[self._stop :]

    def received(self, count: int) -> None:
        """`count` bytes were put into the last `buffer()`; call `next` until it gives None."""
        if self._payload is not None:
            self._filled += count
        else:
            self._stop += count

    def feed(self, data: Part) -> list[Any]:
        """Copy `data` in and give the messages that are complete; for tests and simulation."""
        messages: list[Any] = []
        rest = memoryview(data)
        while rest:
            target = self.buffer()
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            self.received(count)
            rest = rest[count:]
            while (message := self.next()) is not None:
                messages.append(message)
        return messages

    def next(self) -> Any | None:
        """The next complete message, or None where more bytes are needed.

        Raises:
            RemoteProtocolError: what came is not a frame within the limits.
        """
        if self._payload is not None:
            return self._finish_payload()
        length = self._header_length
        if length is None:
            if self._stop - self._start < PREFIX.size:
                return self._need(PREFIX.size)
            length, payload_length = PREFIX.unpack_from(self._scratch, self._start)
            self._check_lengths(length, payload_length)
            self._start += PREFIX.size
            self._header_length, self._payload_length = length, payload_length
        if self._stop - self._start < length:
            return self._need(length)
        end = self._start + length
        message = self._decode(self._view[self._start : end])
        self._start = end
        self._header_length = None
        activation = message.activation if type(message) is Forward else None
        if self._payload_length != (0 if activation is None else activation.size_bytes):
            raise RemoteProtocolError("the payload does not measure what the header says")
        if activation is None:
            return message
        return self._begin_payload(message, activation)

    def _check_lengths(self, header: int, payload: int) -> None:
        if header > self._limits.header_bytes_max:
            raise RemoteProtocolError(f"a header of {header} bytes is too long")
        if payload > self._limits.payload_bytes_max:
            raise RemoteProtocolError(f"a payload of {payload} bytes is too long")

    def _need(self, size: int) -> None:
        """Make room for `size` bytes in one piece, what is there already included."""
        rest = self._stop - self._start
        if self._start + size > len(self._scratch) or rest == 0:
            kept = bytes(self._view[self._start : self._stop])
            if size > len(self._scratch):
                self._scratch = bytearray(size)
                self._view = memoryview(self._scratch)
            elif rest == 0 and len(self._scratch) > SCRATCH_BYTES:
                self._scratch = bytearray(SCRATCH_BYTES)
                self._view = memoryview(self._scratch)
            self._view[:rest] = kept
            self._start, self._stop = 0, rest

    def _begin_payload(self, message: Forward, activation: Activation) -> Any | None:
        data = bytearray(self._payload_length)
        self._waiting = dataclasses.replace(
            message, activation=dataclasses.replace(activation, data=data)
        )
        self._payload = memoryview(data)
        self._filled = min(self._stop - self._start, self._payload_length)
        self._payload[: self._filled] = self._view[self._start : self._start + self._filled]
        self._start += self._filled
        return self._finish_payload()

    def _finish_payload(self) -> Any | None:
        if self._filled < self._payload_length:
            self._start = self._stop = 0  # All that was read belonged to the payload.
            return None
        message, self._waiting, self._payload = self._waiting, None, None
        return message
