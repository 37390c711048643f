"""The swarm authority: whoever holds its key may let nodes in."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from p2pllm.domain.errors import AuthenticationError, ConfigurationError
from p2pllm.domain.ids import SwarmId
from p2pllm.security import storage
from p2pllm.security.certificates import CLOCK_SKEW, AuthorityCertificate, swarm_id_of
from p2pllm.security.identity import node_id_of, parse_private_key, private_key_pem

AUTHORITY_FILE = "swarm-authority.json"
CERTIFICATE_LIFETIME = timedelta(days=30)

_KIND = "p2pllm swarm authority"
_REMEDY = "restore it from a backup; without it nobody new can join this swarm"
_NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280, 4.1.2.5: a certificate without a well-defined end."""


class SwarmAuthority:
    """The ed25519 key behind a swarm, with its self-signed certificate.

    Attributes:
        certificate: its public half.
    """

    def __init__(self, private_key: Ed25519PrivateKey, certificate: AuthorityCertificate) -> None:
        self._private_key = private_key
        self.certificate = certificate

    def __repr__(self) -> str:
        return f"SwarmAuthority(swarm={self.swarm!r})"

    @property
    def swarm(self) -> SwarmId:
        """The id of the swarm it rules."""
        return self.certificate.swarm

    @classmethod
    def generate(cls, *, now: datetime) -> SwarmAuthority:
        """A new authority, and so a new swarm; kept in memory only."""
        private_key = Ed25519PrivateKey.generate()
        public_key = private_key.public_key()
        name = _name(swarm_id_of(public_key.public_bytes_raw())[:16])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public_key)
            .serial_number(_serial())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(_NEVER)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_CERTIFICATE_SIGNING, critical=True)
            .add_extension(x509.SubjectKeyIdentifier(_key_identifier(public_key)), critical=False)
            .sign(private_key, None)
        )
        return cls(private_key, AuthorityCertificate(certificate.public_bytes(Encoding.DER)))

    @classmethod
    def create(cls, folder: Path, *, now: datetime) -> SwarmAuthority:
        """A new authority, kept in `folder`.

        Raises:
            ConfigurationError: there is one already, or it cannot be written.
        """
        path = folder / AUTHORITY_FILE
        if path.exists():
            raise ConfigurationError(
                f"{path} holds the authority of a swarm already; choose another data folder"
            )
        authority = cls.generate(now=now)
        authority.store(folder)
        return authority

    @classmethod
    def load(cls, folder: Path) -> SwarmAuthority | None:
        """The authority kept in `folder`, or None where there is none.

        Raises:
            ConfigurationError: there is one, but it cannot be used.
        """
        path = folder / AUTHORITY_FILE
        content = storage.read_private_json(path, _KIND, remedy=_REMEDY)
        if content is None:
            return None
        try:
            key_pem = str(content["private_key"]).encode()
            certificate = AuthorityCertificate(
                base64.b64decode(content["certificate"], validate=True)
            )
        except (KeyError, TypeError, ValueError, AuthenticationError):
            raise storage.damaged(path, _REMEDY) from None
        private_key = parse_private_key(key_pem, path, _REMEDY)
        if swarm_id_of(private_key.public_key().public_bytes_raw()) != certificate.swarm:
            raise storage.damaged(path, _REMEDY)
        return cls(private_key, certificate)

    def store(self, folder: Path) -> None:
        """Keep it in `folder`, mode 0600.

        Raises:
            ConfigurationError: it cannot be written.
        """
        content = {
            "certificate": base64.b64encode(self.certificate.der).decode(),
            "private_key": private_key_pem(self._private_key).decode(),
        }
        storage.write_private_json(folder / AUTHORITY_FILE, _KIND, content)

    def issue(
        self, public_key: bytes, *, now: datetime, lifetime: timedelta = CERTIFICATE_LIFETIME
    ) -> bytes:
        """A membership certificate, X.509 in DER, at most 512 bytes.

        It stands in every record its owner signs, so it says no more than it must: the node id,
        the key and the dates. Without an extended key usage it serves both ends of TLS.

        Args:
            public_key: the member's, 32 raw bytes of ed25519; the caller has seen its owner sign.
            now: valid from an hour before this.
            lifetime: and up to this long after it.

        Raises:
            ValueError: `public_key` is not one.
        """
        key = Ed25519PublicKey.from_public_bytes(public_key)
        identifier = _key_identifier(self._private_key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(node_id_of(public_key)))
            .issuer_name(_name(self.swarm[:16]))
            .public_key(key)
            .serial_number(_serial())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier(identifier, None, None), critical=False)
            .sign(self._private_key, None)
        )
        return certificate.public_bytes(Encoding.DER)


_CERTIFICATE_SIGNING = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _serial() -> int:
    """63 random bits: short, positive, and never the same twice in a swarm's life."""
    return secrets.randbits(63) | 1


def _key_identifier(public_key: Ed25519PublicKey) -> bytes:
    """Tells authorities apart for OpenSSL's strict mode; eight bytes keep certificates small."""
    return bytes.fromhex(swarm_id_of(public_key.public_bytes_raw())[:16])
