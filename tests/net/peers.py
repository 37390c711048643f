"""A peer for tests: `PeerStreams` whose callbacks fill queues, in this process or its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from p2pllm.domain.ids import NodeId
from p2pllm.domain.messages import Hello
from p2pllm.domain.records import Address
from p2pllm.net.limits import StreamLimits
from p2pllm.net.sockets import bind_stream
from p2pllm.net.streams import PeerStreams
from tests.net.certificates import Identity, identify

HOST = "127.0.0.1"


class Peer(PeerStreams):
    """Construct within a running loop."""

    def __init__(
        self,
        identity: Identity,
        *,
        limits: StreamLimits | None = None,
        hello: Hello | None = None,
        **more: Any,
    ) -> None:
        self.identity = identity
        self.node = identity.node
        self.messages: asyncio.Queue[tuple[NodeId, Any]] = asyncio.Queue()
        self.unreachable: asyncio.Queue[tuple[NodeId, str]] = asyncio.Queue()
        super().__init__(
            hello or identity.hello(),
            listener=bind_stream(HOST, 0),
            server_context=identity.server_context,
            client_context=more.pop("client_context", identity.client_context),
            own_certificate=identity.certificate,
            identify=more.pop("identify", identify),
            on_message=lambda node, message: self.messages.put_nowait((node, message)),
            on_unreachable=lambda node, detail: self.unreachable.put_nowait((node, detail)),
            limits=limits,
            **more,
        )

    @property
    def addresses(self) -> tuple[Address, ...]:
        return (Address(HOST, self.port),)

    async def refused_one(self) -> None:
        """Wait until just one connection was refused."""
        async with asyncio.timeout(3):
            while not self.refused_total:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert self.refused_total == 1

    def tell(self, other: Peer, message: Any) -> None:
        self.send(other.node, other.addresses, message)


async def _main(prefix: str) -> None:
    """Say the port on standard output; then receive, and answer nothing, until killed."""
    async with Peer(Identity.load(Path(prefix))) as peer:
        print(peer.port, flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
