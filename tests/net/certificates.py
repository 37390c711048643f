"""Throw-away swarms: an ed25519 authority, members' certificates and TLS contexts."""

from __future__ import annotations

import datetime
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.domain.messages import Hello

START = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)


def identify(certificate: bytes) -> NodeId:
    """The id of the key in a certificate."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise AuthenticationError("not a member's key")
    return NodeId(hashlib.sha256(key.public_bytes_raw()).hexdigest()[:32])


@dataclass
class Identity:
    """A member: its id, its certificate, both TLS contexts, and the files they came from."""

    node: NodeId
    swarm: SwarmId
    certificate: bytes
    server_context: ssl.SSLContext
    client_context: ssl.SSLContext
    file: Path

    @classmethod
    def load(cls, file: Path) -> Identity:
        """From key and certificate in `file` and the authority's certificate beside it."""
        authority = file.with_name("authority.pem").read_bytes()
        key = x509.load_pem_x509_certificate(authority).public_key()
        assert isinstance(key, Ed25519PublicKey)
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.verify_mode = ssl.CERT_OPTIONAL
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_verify_locations(cadata=authority.decode())
            context.load_cert_chain(file)
        swarm = SwarmId(hashlib.sha256(key.public_bytes_raw()).hexdigest())
        return cls(identify(der), swarm, der, server, client, file)

    def hello(self, versions: tuple[int, int] = (1, 1)) -> Hello:
        """What it greets with."""
        return Hello(*versions, self.node, self.swarm, "test")


class Swarm:
    """Makes members whose certificates it signs."""

    def __init__(self, folder: Path, name: str = "swarm") -> None:
        self._folder = folder
        self._key = Ed25519PrivateKey.generate()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._count = 0
        authority = self._sign(self._name, self._key, is_authority=True)
        (folder / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))

    def member(self) -> Identity:
        """A new one."""
        self._count += 1
        key = Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"node-{self._count}")])
        certificate = self._sign(subject, key, is_authority=False)
        file = self._folder / f"member-{self._count}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Identity.load(file)

    def _sign(
        self, subject: x509.Name, key: Ed25519PrivateKey, *, is_authority: bool
    ) -> x509.Certificate:
        issuer_key = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(START)
            .not_valid_after(END)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=is_authority,
                    crl_sign=is_authority,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, None)
        )
