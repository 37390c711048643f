"""What a node keeps of its swarm from one start to the next."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from p2pllm.domain.enrolment import DatagramKey
from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.ids import SwarmId
from p2pllm.domain.records import Address
from p2pllm.security import storage
from p2pllm.security.certificates import AuthorityCertificate, read_certificate
from p2pllm.security.datagrams import EPOCH_MAX, check_keys, next_boot_epoch
from p2pllm.security.identity import NodeIdentity

MEMBERSHIP_FILE = "membership.json"
RENEWAL_MARGIN = timedelta(days=10)
"""A third of a certificate's life: room for a holder of the authority that is away for days."""

_KIND = "p2pllm membership"
_REMEDY = "restore it from a backup, or delete it and join again with a new invite"


@dataclass(frozen=True, slots=True)
class Membership:
    """A node's place in a swarm.

    Attributes:
        authority: the swarm authority's certificate, DER.
        certificate: the node's own, DER.
        keys: the datagram key ring, newest first.
        peers: where other members listened when it joined.
        boot_epoch: of the latest start; 0 before the first. See `datagrams.next_boot_epoch`.
    """

    authority: bytes
    certificate: bytes
    keys: tuple[DatagramKey, ...]
    peers: tuple[Address, ...] = ()
    boot_epoch: int = 0

    @property
    def swarm(self) -> SwarmId:
        """Which swarm it is."""
        return AuthorityCertificate(self.authority).swarm

    @property
    def expires(self) -> datetime:
        """When the certificate ends."""
        return read_certificate(self.certificate).not_after

    def is_expired(self, now: datetime) -> bool:
        """Whether nobody lets this node in any more; it must join again."""
        return now > self.expires

    def needs_renewal(self, now: datetime) -> bool:
        """Whether it is time to ask for a new certificate."""
        return now >= self.expires - RENEWAL_MARGIN

    def save(self, folder: Path) -> None:
        """Keep it in `folder`, mode 0600.

        Raises:
            ConfigurationError: it cannot be written.
        """
        content = {
            "authority": base64.b64encode(self.authority).decode(),
            "certificate": base64.b64encode(self.certificate).decode(),
            "keys": [
                {"number": key.number, "secret": base64.b64encode(key.secret).decode()}
                for key in self.keys
            ],
            "peers": [{"host": peer.host, "port": peer.port} for peer in self.peers],
            "boot_epoch": self.boot_epoch,
        }
        storage.write_private_json(folder / MEMBERSHIP_FILE, _KIND, content)

    def begin_boot(self, folder: Path, wall_ms: int) -> Membership:
        """The membership with the epoch of this start, which is on the disk when this returns.

        Raises:
            ConfigurationError: it cannot be written; do not start then, an epoch must not be
                used twice.
        """
        started = replace(self, boot_epoch=next_boot_epoch(self.boot_epoch, wall_ms))
        started.save(folder)
        return started


def load_membership(folder: Path, identity: NodeIdentity) -> Membership | None:
    """The membership of `identity` kept in `folder`, or None where there is none.

    It may have expired.

    Raises:
        ConfigurationError: there is one, but it cannot be used.
    """
    path = folder / MEMBERSHIP_FILE
    content = storage.read_private_json(path, _KIND, remedy=_REMEDY)
    if content is None:
        return None
    try:
        membership = _parse(content)
        AuthorityCertificate(membership.authority).verify(
            membership.certificate, read_certificate(membership.certificate).not_before
        )
        node = read_certificate(membership.certificate).node
    except (KeyError, TypeError, ValueError, AuthenticationError):
        # Not chained: a parser's message may quote the file.
        raise storage.damaged(path, _REMEDY) from None
    if node != identity.node_id:
        raise storage.damaged(path, "it is of another node; " + _REMEDY)
    return membership


def _parse(content: dict[str, Any]) -> Membership:
    keys = tuple(
        DatagramKey(int(item["number"]), base64.b64decode(item["secret"], validate=True))
        for item in content["keys"]
    )
    check_keys(keys)
    boot_epoch = int(content["boot_epoch"])
    if not 0 <= boot_epoch <= EPOCH_MAX:
        raise ValueError("no boot epoch")
    return Membership(
        authority=base64.b64decode(content["authority"], validate=True),
        certificate=base64.b64decode(content["certificate"], validate=True),
        keys=keys,
        peers=tuple(Address(str(item["host"]), int(item["port"])) for item in content["peers"]),
        boot_epoch=boot_epoch,
    )
