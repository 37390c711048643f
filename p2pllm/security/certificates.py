"""Membership certificates: the swarm authority's word that a key belongs to a member.

A certificate is X.509 so that TLS can use it, and small since every signed record carries one:
the subject's common name is the node id, and there is no other subject. The authority's own
certificate is self-signed; what names the swarm is the hash of its key, so a copy with other
dates is the same swarm.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.security.identity import node_id_of

CERTIFICATE_BYTES_MAX = 512
AUTHORITY_BYTES_MAX = 1_024
CLOCK_SKEW = timedelta(hours=1)
"""Certificates are valid from this much before they were made, for members whose clock is late."""

_SIGNATURE_HEADER = b"\x03\x41\x00"
"""A DER bit string of 64 bytes, all bits used."""


@dataclass(frozen=True, slots=True)
class MemberCertificate:
    """What a verified certificate says.

    Attributes:
        node: whose it is.
        public_key: theirs.
        not_before: valid from then on.
        not_after: and up to then.
    """

    node: NodeId
    public_key: Ed25519PublicKey
    not_before: datetime
    not_after: datetime

    def valid_at(self, now: datetime) -> bool:
        """Whether it holds at `now`, which carries a time zone."""
        return self.not_before <= now <= self.not_after


class AuthorityCertificate:
    """The swarm authority as everybody knows it: its public half.

    Attributes:
        der: its certificate.
        swarm: SHA-256 of its key, which is the swarm's id.

    Raises:
        AuthenticationError: `der` is not the certificate of a swarm authority.
    """

    def __init__(self, der: bytes) -> None:
        self.der = der
        self._certificate, key = _parse(der, AUTHORITY_BYTES_MAX)
        try:
            self._certificate.verify_directly_issued_by(self._certificate)
            constraints = self._certificate.extensions.get_extension_for_class(
                x509.BasicConstraints
            ).value
        except Exception as error:  # whatever hostile bytes make a parser raise
            raise AuthenticationError("not the certificate of a swarm authority") from error
        if not constraints.ca:
            raise AuthenticationError("not the certificate of a swarm authority")
        self.swarm = swarm_id_of(key.public_bytes_raw())

    def __repr__(self) -> str:
        return f"AuthorityCertificate(swarm={self.swarm!r})"

    def verify(self, der: bytes, now: datetime) -> MemberCertificate:
        """What the membership certificate `der` says, once it is proven.

        Args:
            der: the certificate.
            now: when it must hold; carries a time zone.

        Raises:
            AuthenticationError: this authority did not issue it, it does not hold at `now`, or
                its subject is not the id that follows from its key.
        """
        certificate, member = _member(der)
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise AuthenticationError(
                "this membership certificate was not issued by this swarm's authority"
            ) from error
        if now < member.not_before:
            raise AuthenticationError(
                f"the membership certificate of {member.node} holds from "
                f"{member.not_before:%Y-%m-%d %H:%M} UTC on; set the clocks right"
            )
        if now > member.not_after:
            raise AuthenticationError(
                f"the membership certificate of {member.node} expired on "
                f"{member.not_after:%Y-%m-%d %H:%M} UTC; join again with a new invite"
            )
        return member


def swarm_id_of(public_key: bytes) -> SwarmId:
    """The swarm's id: SHA-256 of its authority's raw ed25519 key, in hexadecimal digits."""
    return SwarmId(hashlib.sha256(public_key).hexdigest())


def read_certificate(der: bytes) -> MemberCertificate:
    """What `der` says of itself; nobody's signature is checked, only that id and key match.

    Raises:
        AuthenticationError: it is no membership certificate.
    """
    return _member(der)[1]


def _member(der: bytes) -> tuple[x509.Certificate, MemberCertificate]:
    certificate, key = _parse(der, CERTIFICATE_BYTES_MAX)
    try:
        subject = [(item.oid, item.value) for item in certificate.subject]
        not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Exception as error:  # whatever hostile bytes make a parser raise
        raise AuthenticationError("not a membership certificate") from error
    node = node_id_of(key.public_bytes_raw())
    if subject != [(NameOID.COMMON_NAME, node)]:
        raise AuthenticationError("this certificate's subject is not the id of its key")
    return certificate, MemberCertificate(node, key, not_before, not_after)


def _parse(der: bytes, bytes_max: int) -> tuple[x509.Certificate, Ed25519PublicKey]:
    if len(der) > bytes_max:
        raise AuthenticationError(f"a certificate of {len(der)} bytes; {bytes_max} is the limit")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        signature = certificate.signature
    except Exception as error:  # whatever hostile bytes make a parser raise
        raise AuthenticationError("not a certificate") from error
    if not isinstance(key, Ed25519PublicKey):
        raise AuthenticationError("a certificate without an ed25519 key")
    # What stands around the signature is not signed, and parsers let some of it pass (a count of
    # unused bits, for one). A certificate has one encoding only.
    if not der.endswith(_SIGNATURE_HEADER + signature):
        raise AuthenticationError("a certificate whose signature is not plain ed25519 in DER")
    return certificate, key
