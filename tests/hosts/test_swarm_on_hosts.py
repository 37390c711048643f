"""Nodes on hosts of their own, that find each other by mDNS alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pllm.app.state import STATE_FILE
from p2pllm.security.membership import MEMBERSHIP_FILE
from tests.hosts.network import VirtualNetwork, missing_permission, virtual_network
from tests.processes.cluster import NodeProcess, alive, cluster, is_ready

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
    (node.data_dir / STATE_FILE).unlink(missing_ok=True)
    path = node.data_dir / MEMBERSHIP_FILE
    content = json.loads(path.read_text())
    content["peers"] = []
    path.write_text(json.dumps(content))  # Keeps the file's mode.


async def status_when(
    node: NodeProcess, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0
) -> dict[str, Any]:
    """The status, asked by command on the node's own host, once `condition` holds of it."""
    deadline_s = time.monotonic() + timeout_s
    while not condition(status := await node.command("status")):
        assert time.monotonic() < deadline_s, f"still not so: {status}\n{node.log.read_text()}"
    return status


async def test_hosts_find_each_other_by_mdns_generate_lose_one_and_generate_again(
    network: VirtualNetwork, tmp_path: Path
) -> None:
    async with cluster() as nodes:
        for number, host in enumerate(network.hosts, start=1):
            nodes.append(NodeProcess(tmp_path, f"host-{number}", tuple(host.command())))
        first, last = nodes[0], nodes[-1]

        # Everybody is let in, one after the other, and then forgets where the others are.
        await first.start("--no-mdns", "--model", "builtin")
        await first.ready()
        invite = (await first.command("invite", "--uses", "3"))["invite"]
        for node in nodes[1:]:
            await node.start("--no-mdns", "--join", invite)
        for node in nodes:
            await node.ready()
        codes = await asyncio.gather(*(node.stop() for node in nodes))
        assert codes == [0] * len(nodes)
        for node in nodes:
            forget_addresses(node)

        for node in nodes:
            await node.start("--model", "builtin", "--max-layers", "6")
        for node in nodes:
            await node.ready()
        status = await status_when(
            last, lambda status: len(alive(status)) == 4 and is_ready(status, "builtin")
        )
        run = ("run", "builtin", PROMPT, "--temperature", "0", "--max-tokens", "40")
        before = await last.command(*run)
        assert len(before["token_ids"]) > 5
        assert len(before["path"]) >= 2

        # A host that others compute on goes dark, without a word.
        names = {member["id"]: member["name"] for member in status["members"]}
        on_path = {names[hop["node"]] for hop in before["path"]}
        victim = min(on_path - {last.name})
        network.unplug(network.hosts[int(victim.removeprefix("host-")) - 1])
        after = await last.command(*run)
        assert after["token_ids"] == before["token_ids"]
        assert victim not in {names[hop["node"]] for hop in after["path"]}
        await status_when(
            last, lambda status: victim not in alive(status) and is_ready(status, "builtin")
        )
