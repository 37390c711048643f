"""Messages in datagrams: one `[tag, fields]` body each, sealed as a whole by `p2pllm.security`.

A datagram never exceeds 1,280 bytes with its IP and UDP headers, the least MTU of IPv6, so it is
never fragmented. What remains for the body once the seal took its share is `BODY_BYTES_MAX`.
"""

from __future__ import annotations

from typing import Final

from p2pllm.domain.errors import RemoteProtocolError
from p2pllm.domain.gossip import DATAGRAM_BYTES_MAX, SEAL_BYTES, GossipMessage
from p2pllm.wire.codec import LocalProtocolError, decoder, encode

BODY_BYTES_MAX: Final = DATAGRAM_BYTES_MAX - SEAL_BYTES


def encode_datagram(message: GossipMessage) -> bytes:
    """The body of a datagram.

    Raises:
        LocalProtocolError: it breaks the protocol or is too long; send fewer items.
    """
    body = encode(message)
    if len(body) > BODY_BYTES_MAX:
        raise LocalProtocolError(
            f"{type(message).__name__} of {len(body)} bytes exceeds {BODY_BYTES_MAX}"
        )
    return body


def decode_datagram(body: bytes) -> GossipMessage:
    """The message in the body of a datagram.

    Raises:
        RemoteProtocolError: whatever is wrong with it.
    """
    if len(body) > BODY_BYTES_MAX:
        raise RemoteProtocolError(f"a body of {len(body)} bytes is too long")
    return _decode(body)


_decode = decoder(GossipMessage)
