"""Keys, certificates and TLS pairs for these tests."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from p2pllm.domain.enrolment import DatagramKey
from p2pllm.domain.records import Address
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.identity import NodeIdentity

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
KEY = DatagramKey(1, bytes(range(32)))
OLDER_KEY = DatagramKey(0, bytes(range(32, 64)))
ADDRESS = Address("192.168.1.20", 7421)


def authority() -> SwarmAuthority:
    return SwarmAuthority.generate(now=NOW)


def member(swarm: SwarmAuthority, *, now: datetime = NOW) -> tuple[NodeIdentity, bytes]:
    identity = NodeIdentity.generate()
    return identity, swarm.issue(identity.public_key, now=now)


class TlsPair:
    """Two ends of TLS joined in memory."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(to_client, to_server)
        self.server = server.wrap_bio(to_server, to_client, server_side=True)

    def handshake(self) -> None:
        """Shake hands, then send a byte each way, so that both ends know that it held."""
        waiting = [self.client.do_handshake, self.server.do_handshake]
        for _ in range(6):
            waiting = [step for step in waiting if not _done(step)]
        assert not waiting
        self.client.write(b"c")
        assert self.server.read(1) == b"c"
        self.server.write(b"s")
        assert self.client.read(1) == b"s"


def _done(step: object) -> bool:
    try:
        step()  # type: ignore[operator]
    except ssl.SSLWantReadError:
        return False
    return True


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
