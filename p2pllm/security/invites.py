"""Invites: a line of text that lets somebody in, and the book of those still good.

`p2p1.<swarm>.<secret>.<addresses>`: the 32 bytes of the swarm's id, a secret of 16 bytes, and
addresses to try as `host:port` with commas between, each in base64url without padding. The last
part is missing where there are no addresses; mDNS finds the swarm then. No character in it means
anything to a shell.

The book keeps the SHA-256 of a secret only, so whoever reads it can let nobody in. (A plain hash
is enough: the secret is 128 random bits, nothing to guess.)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from p2pllm.domain.errors import InviteError
from p2pllm.domain.ids import NodeId, SwarmId, is_node_id
from p2pllm.domain.records import ADDRESSES_MAX, Address
from p2pllm.security import storage

INVITES_FILE = "invites.json"
SECRET_BYTES = 16
LIFETIME = timedelta(hours=24)
LIFETIME_MAX = timedelta(days=366)
USES_MAX = 256
INVITES_MAX = 128
"""Invites in the book. Each may name `USES_MAX` nodes, so this keeps its file below 2 MiB."""
TEXT_LENGTH_MAX = 4_096

_PREFIX = "p2p1"
_SWARM_BYTES = 32
_HOST_LENGTH_MAX = 253
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")
_KIND = "p2pllm invites"
_REMEDY = "delete it and make new invites"


@dataclass(frozen=True, slots=True)
class Invite:
    """What the line says.

    Attributes:
        swarm: which swarm; the joiner checks it before the secret is sent.
        secret: 16 bytes; never logged, never shown but in the line itself.
        addresses: where members may listen.
    """

    swarm: SwarmId
    secret: bytes = field(repr=False)
    addresses: tuple[Address, ...] = ()


def format_invite(invite: Invite) -> str:
    """The line to hand over, by a way that others do not read."""
    parts = [_PREFIX, _encode(bytes.fromhex(invite.swarm)), _encode(invite.secret)]
    if invite.addresses:
        hints = ",".join(str(address) for address in invite.addresses[:ADDRESSES_MAX])
        parts.append(_encode(hints.encode()))
    return ".".join(parts)


def parse_invite(text: str) -> Invite:
    """The invite in `text`; white space and line breaks in it do not matter.

    Raises:
        InviteError: it is none, or of a newer version; the message never quotes it.
    """
    if len(text) > TEXT_LENGTH_MAX:
        raise _malformed("it is far too long")
    prefix, *parts = "".join(text.split()).split(".")
    if prefix != _PREFIX:
        if re.fullmatch(r"p2p[0-9]+", prefix):
            raise InviteError(
                "this invite is of another version; use the same p2pllm as who made it",
                code="invite_version",
            )
        raise _malformed(f"an invite begins with {_PREFIX}.")
    if len(parts) not in (2, 3):
        raise _malformed("a part is missing or there is one too many")
    decoded = [_decode(part) for part in parts]
    swarm, secret = decoded[:2]
    if len(swarm) != _SWARM_BYTES or len(secret) != SECRET_BYTES:
        raise _malformed("a part is too short or too long")
    hints = decoded[2] if len(decoded) == 3 else b""
    return Invite(SwarmId(swarm.hex()), secret, _parse_addresses(hints))


@dataclass(frozen=True, slots=True)
class _Entry:
    """An invite in the book: what is left of it is `uses` less the nodes admitted."""

    digest: bytes
    uses: int
    expires_s: int
    admitted: tuple[NodeId, ...] = ()


class InviteBook:
    """The invites this node has made. Methods may be called from any thread; each flushes a file.

    The file belongs to one process.

    Args:
        folder: the data folder.
        random_bytes: as many random bytes as asked for.

    Raises:
        ConfigurationError: there is a book in the folder, but it cannot be used.
    """

    def __init__(
        self, folder: Path, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._path = folder / INVITES_FILE
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self._entries = _load(self._path)

    def __repr__(self) -> str:
        return f"InviteBook({len(self._entries)} invites)"

    def create(self, *, uses: int = 1, lifetime: timedelta = LIFETIME, now: datetime) -> bytes:
        """The secret of a new invite, which lets `uses` nodes in until `lifetime` from `now`.

        Raises:
            InviteError: no such invite can be made.
            ConfigurationError: the book cannot be written.
        """
        if not 1 <= uses <= USES_MAX:
            raise InviteError(f"an invite is for 1 to {USES_MAX} nodes, not {uses}")
        if not timedelta() < lifetime <= LIFETIME_MAX:
            raise InviteError(f"an invite lives up to {LIFETIME_MAX.days} days")
        secret = self._random_bytes(SECRET_BYTES)
        expires_s = int((now + lifetime).timestamp())
        with self._lock:
            # Expired ones stay until their room is needed, to tell late comers what happened.
            kept = sorted(self._entries, key=lambda entry: entry.expires_s)
            if len(kept) >= INVITES_MAX:
                if kept[0].expires_s > now.timestamp():
                    raise InviteError(
                        f"there are {INVITES_MAX} invites that have not expired; wait for one to "
                        "expire, or make one invite for several nodes"
                    )
                kept = kept[1:]
            self._write([*kept, _Entry(_digest(secret), uses, expires_s)])
        return secret

    def redeem(self, secret: bytes, node: NodeId, now: datetime) -> None:
        """Let `node` in; when this returns, that is on the disk.

        A node that was let in by this invite before is let in again without using it up further:
        its grant may have been lost on the way.

        Raises:
            InviteError: the invite is not known, has expired or is used up.
            ConfigurationError: the book cannot be written; the invite is as it was.
        """
        digest = _digest(secret)
        with self._lock:
            found: int | None = None
            for index, entry in enumerate(self._entries):  # all of them: no early way out
                if hmac.compare_digest(entry.digest, digest):
                    found = index
            if found is None:
                raise InviteError("this invite is not known here", code="invite_unknown")
            entry = self._entries[found]
            if now.timestamp() >= entry.expires_s:
                raise InviteError(
                    "this invite has expired; ask for a new one", code="invite_expired"
                )
            if node in entry.admitted:
                return
            if len(entry.admitted) >= entry.uses:
                raise InviteError(
                    "this invite is used up; ask for a new one", code="invite_used_up"
                )
            changed = list(self._entries)
            changed[found] = replace(entry, admitted=(*entry.admitted, node))
            self._write(changed)

    def _write(self, entries: list[_Entry]) -> None:
        content = [
            {
                "secret_sha256": entry.digest.hex(),
                "uses": entry.uses,
                "expires": datetime.fromtimestamp(entry.expires_s, UTC).isoformat(),
                "admitted": list(entry.admitted),
            }
            for entry in entries
        ]
        storage.write_private_json(self._path, _KIND, {"invites": content})
        self._entries = entries


def _load(path: Path) -> list[_Entry]:
    content = storage.read_private_json(path, _KIND, remedy=_REMEDY)
    if content is None:
        return []
    try:
        return [_parse_entry(item) for item in content["invites"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise storage.damaged(path, _REMEDY) from None


def _parse_entry(item: dict[str, Any]) -> _Entry:
    digest, uses = bytes.fromhex(item["secret_sha256"]), item["uses"]
    expires = datetime.fromisoformat(item["expires"])
    admitted = tuple(NodeId(node) for node in item["admitted"])
    if not isinstance(uses, int) or expires.tzinfo is None or not all(map(is_node_id, admitted)):
        raise ValueError("not an invite")
    return _Entry(digest, uses, int(expires.timestamp()), admitted)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _malformed(reason: str) -> InviteError:
    return InviteError(
        f"this is not a whole invite: {reason}; copy it again from the first to the last character",
        code="invite_malformed",
    )


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(part: str) -> bytes:
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("a part has characters that do not belong there") from None
    if _encode(data) != part:
        raise _malformed("a part has characters that do not belong there")
    return data


def _parse_addresses(hints: bytes) -> tuple[Address, ...]:
    if not hints:
        return ()
    try:
        texts = hints.decode("ascii").split(",")
    except UnicodeDecodeError:
        raise _malformed("its addresses cannot be read") from None
    if len(texts) > ADDRESSES_MAX:
        raise _malformed("it has too many addresses")
    return tuple(_parse_address(text) for text in texts)


def _parse_address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _malformed("its addresses cannot be read")
    if (
        not colon
        or not 0 < len(host) <= _HOST_LENGTH_MAX
        or _HOST.fullmatch(host) is None
        or re.fullmatch(r"[0-9]{1,5}", port) is None
        or not 0 < int(port) <= 65_535
    ):
        raise _malformed("its addresses cannot be read")
    return Address(host, int(port))
