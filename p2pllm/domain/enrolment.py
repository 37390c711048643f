"""What is said at a join, before the joiner is a member, and when a member renews.

joiner -> member   EnrolRequest     over TLS; with a client certificate it asks to renew that
member -> joiner   EnrolOffer       the joiner checks the swarm's hash before it goes on
joiner -> member   EnrolProof       the invite's secret, and a signature by the new node's key
member -> joiner   EnrolGrant or EnrolRefusal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.records import ADDRESSES_MAX, NODE_NAME_LENGTH_MAX, Address

ENROLMENT_PEERS_MAX = 16
DATAGRAM_KEYS_MAX = 2


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """May I come in?"""

    version: Annotated[int, Bounds(1, 65_535)]


@dataclass(frozen=True, slots=True)
class EnrolOffer:
    """This is the swarm; prove that you are invited.

    Attributes:
        authority: the swarm authority's certificate, X.509 in DER.
        challenge: fresh random bytes the proof must sign.
        is_open: whether a joiner without an invite is let in.
    """

    authority: Annotated[bytes, Length(1_024)]
    challenge: Annotated[bytes, Length(32)]
    is_open: bool


@dataclass(frozen=True, slots=True)
class EnrolProof:
    """I am invited, and this is my key.

    Attributes:
        public_key: the joiner's ed25519 key, 32 bytes.
        secret: the invite's; empty where the swarm is open.
        signature: by that key, over the challenge, the TLS certificate the joiner saw, the key
            and the name.
        name: what people call the joiner.
    """

    public_key: Annotated[bytes, Length(32)]
    secret: Annotated[bytes, Length(32)]
    signature: Annotated[bytes, Length(64)]
    name: Annotated[str, Length(NODE_NAME_LENGTH_MAX)]


@dataclass(frozen=True, slots=True)
class DatagramKey:
    """A key of the swarm's datagram ring; never logged, never shown."""

    number: Annotated[int, Bounds(0, 255)]
    secret: Annotated[bytes, Length(32)]

    def __repr__(self) -> str:
        return f"DatagramKey(number={self.number}, secret=...)"


@dataclass(frozen=True, slots=True)
class EnrolGrant:
    """Welcome.

    Attributes:
        certificate: the joiner's membership certificate, X.509 in DER.
        keys: the datagram key ring, newest first.
        peers: where other members listen.
    """

    certificate: Annotated[bytes, Length(512)]
    keys: Annotated[tuple[DatagramKey, ...], Length(DATAGRAM_KEYS_MAX)]
    peers: Annotated[tuple[Address, ...], Length(ENROLMENT_PEERS_MAX * ADDRESSES_MAX)]


@dataclass(frozen=True, slots=True)
class EnrolRefusal:
    """No; `detail` says why, in a line for people, and no more than a stranger may know."""

    code: Annotated[str, Length(64)]
    detail: Annotated[str, Length(256)]


EnrolmentMessage = EnrolRequest | EnrolOffer | EnrolProof | EnrolGrant | EnrolRefusal
