"""Nodes on hosts of their own, that find each other by mDNS alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pllm.app.state import STATE_FILE
from p2pllm.security.membership import MEMBERSHIP_FILE
from tests.hosts.network import VirtualNetwork, missing_permission, virtual_network
from tests.processes.cluster import (
    NodeProcess,
    alive,
    cluster,
    complete,
    is_ready,
    wait_for_status,
)

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]

PROMPT = "Once upon a time"


@pytest.fixture
def network() -> Iterator[VirtualNetwork]:
    reason = missing_permission()
    if reason is not None:
        pytest.skip(reason)
    with virtual_network(4) as made:
        yield made


def forget_addresses(node: NodeProcess) -> None:
    """Leave the membership, and no trace of where anybody listens."""
    import json

    (node.data_dir / STATE_FILE).unlink(missing_ok=True)
    path = node.data_dir / MEMBERSHIP_FILE
    content = json.loads(path.read_text())
    content["peers"] = []
    path.write_text(json.dumps(content))
    path.chmod(0o600)


async def test_hosts_find_each_other_by_mdns_generate_lose_one_and_generate_again(
    network: VirtualNetwork, tmp_path: Path
) -> None:
    async with cluster() as nodes:
        for number, host in enumerate(network.hosts, start=1):
            nodes.append(NodeProcess(tmp_path, f"host-{number}", tuple(host.command())))
        first = nodes[0]

        def options(number: int) -> tuple[str, ...]:
            address = network.hosts[number].address
            return ("--api", f"{address}:7771", "--max-layers", "6")

        # Everybody is let in, one after the other, and then forgets where the others are.
        await first.start(*options(0), "--model", "builtin")
        async with await first.ready() as client:
            invite = await client.create_invite(uses=3, lifetime_s=600)
        for number in (1, 2, 3):
            await nodes[number].start(*options(number), "--join", invite, "--no-mdns")
            await nodes[number].ready()
        for node in nodes:
            assert await node.stop() == 0, node.log.read_text()
            forget_addresses(node)

        for number, node in enumerate(nodes):
            await node.start(*options(number), "--model", "builtin")
        async with await nodes[3].ready() as client:
            await wait_for_status(
                client,
                lambda status: len(alive(status)) == 4 and is_ready(status, "builtin"),
            )
            before = await complete(client, "builtin", PROMPT)
            assert len(before["token_ids"]) > 5
            # A host that others computed on goes dark, without a word.
            ids = {member["id"]: member["name"] for member in (await client.status())["members"]}
            victim = next(
                name for hop in before["path"] if (name := ids[hop["node"]]) != "host-4"
            )
            network.unplug(network.hosts[int(victim.removeprefix("host-")) - 1])
            after = await complete(client, "builtin", PROMPT)
            assert after["token_ids"] == before["token_ids"]
            assert victim not in {ids[hop["node"]] for hop in after["path"]}
            await wait_for_status(
                client, lambda status: victim not in alive(status) and is_ready(status, "builtin")
            )
