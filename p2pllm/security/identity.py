"""A node's own key, and the id that follows from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from p2pllm.domain.ids import NodeId
from p2pllm.security import storage

IDENTITY_FILE = "node-key.pem"
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64

_REMEDY = "restore it from a backup, or delete it to start as a new node, which needs a new invite"


def node_id_of(public_key: bytes) -> NodeId:
    """The id of whoever holds the private half of `public_key`, 32 raw bytes of ed25519."""
    return NodeId(hashlib.sha256(public_key).digest()[:16].hex())


class NodeIdentity:
    """A node's ed25519 key. Its private half leaves this object only as encrypted PEM or a file.

    Attributes:
        public_key: 32 raw bytes.
        node_id: what the key makes this node be called.
    """

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes_raw()
        self.node_id = node_id_of(self.public_key)

    def __repr__(self) -> str:
        return f"NodeIdentity(node_id={self.node_id!r})"

    @classmethod
    def generate(cls) -> NodeIdentity:
        """A new identity, kept in memory only."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, folder: Path) -> NodeIdentity | None:
        """The identity kept in `folder`, or None where there is none.

        Raises:
            ConfigurationError: there is one, but it cannot be used.
        """
        path = folder / IDENTITY_FILE
        data = storage.read_private(path, remedy=_REMEDY)
        if data is None:
            return None
        return cls(parse_private_key(data, path, _REMEDY))

    @classmethod
    def load_or_create(cls, folder: Path) -> NodeIdentity:
        """The identity kept in `folder`; where there is none, a new one, now kept there.

        Raises:
            ConfigurationError: there is one that cannot be used, or none can be written.
        """
        known = cls.load(folder)
        if known is not None:
            return known
        identity = cls.generate()
        storage.write_private(folder / IDENTITY_FILE, private_key_pem(identity._private_key))
        return identity

    def sign(self, data: bytes) -> bytes:
        """Ed25519 over `data`, 64 bytes. Callers start `data` with what it is for."""
        return self._private_key.sign(data)

    def encrypted_pem(self, password: bytes) -> bytes:
        """The private key as PKCS #8 PEM that only `password` opens."""
        return self._private_key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password)
        )


def private_key_pem(private_key: Ed25519PrivateKey) -> bytes:
    """PKCS #8 PEM in the clear, for a file of mode 0600 and nothing else."""
    return private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_private_key(data: bytes, path: Path, remedy: str) -> Ed25519PrivateKey:
    """The key in PEM `data`, which was read from `path`.

    Raises:
        ConfigurationError: there is no ed25519 key in it.
    """
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not chained: nothing of a key file may reach a log.
        raise storage.damaged(path, remedy) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise storage.damaged(path, remedy)
    return key
