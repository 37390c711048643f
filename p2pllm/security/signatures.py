"""Every record is signed by its owner, and carries its certificate.

What is signed is `p2pllm record 1`, the kind of the value, a zero byte, and the payload as it
goes over the wire. The kind keeps bytes that were signed as one thing from being passed off as
another; a codec need not promise that.

A record is verified far more often than it is made: gossip brings the same bytes from many sides.
So proven certificates and proven records are remembered by their digest; failures are not, since
whoever sends them could fill any memory.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, TypeVar

from cryptography.exceptions import InvalidSignature

from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import NodeId
from p2pllm.domain.records import LoadRecord, ModelFact, NodeRecord
from p2pllm.security.certificates import AuthorityCertificate, MemberCertificate
from p2pllm.security.identity import SIGNATURE_BYTES, NodeIdentity

CERTIFICATES_MAX = 4_096
"""Remembered certificates: one or two per member, far above any swarm."""

RECORDS_MAX = 16_384
"""Remembered records: the newest few of each member. About 4 MiB."""

T = TypeVar("T")
Key = TypeVar("Key")
Value = TypeVar("Value")


def owner_of(value: NodeRecord | LoadRecord | ModelFact) -> NodeId:
    """Who alone may sign `value`."""
    return value.stamp.writer if isinstance(value, ModelFact) else value.node


class RecordSigner:
    """Signs what this node says.

    Args:
        identity: its key.
        certificate: its membership certificate, DER; replace the signer when it is renewed.
        encode: a value's bytes on the wire.
    """

    def __init__(
        self, identity: NodeIdentity, certificate: bytes, encode: Callable[[Any], bytes]
    ) -> None:
        self._identity = identity
        self._certificate = certificate
        self._encode = encode

    def sign(self, value: T) -> Signed[T]:
        """`value` with its proof."""
        payload = self._encode(value)
        signature = self._identity.sign(_signed_bytes(value, payload))
        return Signed(value, payload, signature, self._certificate)


class RecordVerifier:
    """Tells proven records from others. Belongs to one thread.

    Args:
        authority: the swarm's.
        owner_of: who alone may sign a value; `owner_of` for the records of this protocol.
        now: the wall clock, with a time zone; a certificate must hold at that moment.
    """

    def __init__(
        self,
        authority: AuthorityCertificate,
        owner_of: Callable[[Any], NodeId],
        now: Callable[[], datetime],
    ) -> None:
        self._authority = authority
        self._owner_of = owner_of
        self._now = now
        self._certificates: _Recent[bytes, MemberCertificate] = _Recent(CERTIFICATES_MAX)
        self._records: _Recent[bytes, MemberCertificate] = _Recent(RECORDS_MAX)

    def verify(self, signed: Signed[Any]) -> bool:
        """Whether a member in good standing signed it, and may.

        `signed.value` must be what the codec decoded from `signed.payload`.
        """
        if len(signed.signature) != SIGNATURE_BYTES:
            return False
        content = _signed_bytes(signed.value, signed.payload)
        # The lengths are told by what is fixed: 64 bytes of signature, 32 of digest.
        digest = hashlib.sha256(
            signed.signature + hashlib.sha256(signed.certificate).digest() + content
        ).digest()
        member = self._records.get(digest)
        if member is None:
            member = self._prove(signed, content)
            if member is None:
                return False
            self._records.put(digest, member)
        return member.node == self._owner_of(signed.value) and member.valid_at(self._now())

    def _prove(self, signed: Signed[Any], content: bytes) -> MemberCertificate | None:
        member = self._certificates.get(signed.certificate)
        if member is None:
            try:
                member = self._authority.verify(signed.certificate, self._now())
            except AuthenticationError:
                return None
            self._certificates.put(signed.certificate, member)
        try:
            member.public_key.verify(signed.signature, content)
        except InvalidSignature:
            return None
        return member


def _signed_bytes(value: object, payload: bytes) -> bytes:
    return b"p2pllm record 1 " + type(value).__name__.encode() + b"\0" + payload


class _Recent(Generic[Key, Value]):
    """A bounded memory; the least recently used entry goes first."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._entries: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> None:
        self._entries[key] = value
        if len(self._entries) > self._size_max:
            self._entries.popitem(last=False)
