"""Real nodes whose certificates end soon, or have ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from p2pllm.domain.errors import InviteError
from p2pllm.domain.records import Address
from p2pllm.net.enrolment import enrol
from p2pllm.security.authority import CERTIFICATE_LIFETIME, SwarmAuthority
from p2pllm.security.enrolment import EnrolmentClient
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.membership import RENEWAL_MARGIN, Membership, load_membership
from tests.processes.cluster import LOCAL, Swarm, alive, swarm, wait_for_status

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncGenerator[Swarm, None]:
    async with swarm(folder, founder=(), member=(), bystander=()) as made:
        yield made


def now() -> datetime:
    return datetime.now(UTC)


def membership_of(swarm: Swarm, name: str) -> Membership:
    folder = swarm.nodes[name].data_dir
    found = load_membership(folder, NodeIdentity.load_or_create(folder))
    assert found is not None
    return found


async def stop_with_certificate_until(swarm: Swarm, name: str, end: datetime) -> None:
    """Stop a node, and let it wake up with a certificate that ends at `end`."""
    await swarm.nodes[name].stop()
    folder = swarm.nodes[name].data_dir
    authority = SwarmAuthority.load(swarm.nodes["founder"].data_dir)
    assert authority is not None
    identity = NodeIdentity.load_or_create(folder)
    made = min(now(), end)
    certificate = authority.issue(identity.public_key, now=made, lifetime=end - made)
    # Without the address of the founder: the node has to ask around.
    replace(membership_of(swarm, name), certificate=certificate, peers=()).save(folder)


async def shown_certificate(swarm: Swarm, name: str, address: Address) -> bytes:
    """What a node shows in a TLS handshake."""
    shown: list[bytes] = []

    def stranger(certificate: bytes) -> EnrolmentClient:
        shown.append(certificate)
        return EnrolmentClient(None, NodeIdentity.generate(), "stranger", certificate, now=now)

    with pytest.raises(InviteError):
        await enrol(address, stranger)
    return shown[0]


async def test_a_node_renews_while_it_runs_and_uses_what_it_got(running: Swarm) -> None:
    await stop_with_certificate_until(running, "member", now() + RENEWAL_MARGIN / 2)
    old = membership_of(running, "member")
    client = await running.up("member")
    await wait_for_status(client, lambda status: alive(status) == set(running.nodes))
    node = running.nodes["member"]
    await node.wait_for(
        lambda: membership_of(running, "member").certificate != old.certificate, "did not renew"
    )
    renewed = membership_of(running, "member")
    assert renewed.expires > now() + CERTIFICATE_LIFETIME - timedelta(hours=1)
    assert renewed.boot_epoch >= old.boot_epoch
    await node.wait_for(lambda: "membership_renewed" in node.log.read_text(), "did not say so")
    status = await client.status()
    (member,) = (item for item in status["members"] if item["name"] == "member")
    host, _, port = member["addresses"][0].rpartition(":")
    shown = await shown_certificate(running, "member", Address(host, int(port)))
    assert shown == renewed.certificate
    assert alive(await running.clients["bystander"].status()) == set(running.nodes)


async def test_a_node_whose_certificate_has_ended_says_what_to_do(running: Swarm) -> None:
    await stop_with_certificate_until(running, "bystander", now() - timedelta(hours=1))
    node = running.nodes["bystander"]
    said = len(node.log.read_text())
    await node.start(*LOCAL)
    assert node.process is not None
    assert await node.process.wait() == 3
    assert (
        node.log.read_text()[said:]
        .strip()
        .endswith("this node's membership has expired; join again with --join INVITE")
    )
