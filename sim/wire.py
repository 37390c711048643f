"""What crosses the virtual network, as the bytes a real one would carry.

Every message is encoded by `p2pllm.wire` where it is sent and decoded where it arrives, so a field
out of its bounds, a datagram that is too long, or a value that does not survive the way breaks the
run. Encryption is left out: it draws on true randomness, and all it changes is the length.
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

from p2pllm.domain.gossip import SEAL_BYTES, GossipMessage, Signed
from p2pllm.domain.messages import SessionMessage, StreamProbe, StreamProbeAck
from p2pllm.domain.records import LoadRecord, ModelFact, NodeRecord
from p2pllm.wire.codec import encode
from p2pllm.wire.datagrams import encode_datagram
from p2pllm.wire.frames import PEER_LIMITS, FrameDecoder, frame_parts
from p2pllm.wire.tags import PeerMessage

T = TypeVar("T", NodeRecord, LoadRecord, ModelFact)

SIGNATURE_BYTES = 64
CERTIFICATE_BYTES = 300
"""What a membership certificate takes in DER, rounded up; measured are 292."""

DATAGRAM_OVERHEAD_BYTES: Final = SEAL_BYTES + 48
"""The seal, and the headers of UDP and IPv6."""


class PlainSigner:
    """Signs with what anybody could make, but payloads are real and lengths are right.

    The simulated network carries no forgeries of its own accord, so nobody verifies.
    """

    def __init__(self) -> None:
        self._certificate = bytes(CERTIFICATE_BYTES)

    def node(self, record: NodeRecord) -> Signed[NodeRecord]:
        """As `Sign.node`."""
        return self._signed(record)

    def load(self, record: LoadRecord) -> Signed[LoadRecord]:
        """As `Sign.load`."""
        return self._signed(record)

    def fact(self, fact: ModelFact) -> Signed[ModelFact]:
        """As `Sign.fact`."""
        return self._signed(fact)

    def _signed(self, value: T) -> Signed[T]:
        payload = encode(value)
        signature = hashlib.blake2b(payload, digest_size=SIGNATURE_BYTES).digest()
        return Signed(value, payload, signature, self._certificate)


def datagram_size(message: GossipMessage) -> int:
    """Bytes of the whole packet.

    Raises:
        LocalProtocolError: it breaks the protocol, or no datagram can hold it.
    """
    return len(encode_datagram(message)) + DATAGRAM_OVERHEAD_BYTES


def frame_bytes(message: SessionMessage | StreamProbe | StreamProbeAck) -> bytes:
    """A message as it goes over a stream.

    Raises:
        LocalProtocolError: it breaks the protocol.
    """
    return b"".join(frame_parts(message))


class FrameReader:
    """Reads whole frames, from whomever: in order and one at a time, so one reader does for all."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder(PeerMessage, PEER_LIMITS)

    def read(self, frame: bytes) -> SessionMessage | StreamProbe | StreamProbeAck:
        """What the receiver makes of a frame.

        Raises:
            RemoteProtocolError: nothing.
        """
        (message,) = self._decoder.feed(frame)
        return message
