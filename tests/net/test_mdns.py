from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.domain.messages import PROTOCOL_VERSION
from p2pllm.domain.records import ADDRESSES_MAX, Address
from p2pllm.net import mdns
from p2pllm.net.mdns import Mdns, read_announcement

HOST = "127.0.0.1"
SWARM = SwarmId("ab" * 32)
OTHER = SwarmId("cd" * 32)


class Node(Mdns):
    def __init__(self, digit: str, swarm: SwarmId | None, port: int) -> None:
        self.heard: asyncio.Queue[tuple[Address, NodeId]] = asyncio.Queue()
        super().__init__(
            node=NodeId(digit * 32),
            swarm=swarm,
            addresses=(Address(HOST, port),),
            on_found=lambda address, node: self.heard.put_nowait((address, node)),
            loopback_only=True,
        )


async def test_nodes_of_one_swarm_find_each_other_on_loopback() -> None:
    async with (
        Node("a", SWARM, 7001) as a,
        Node("b", SWARM, 7002) as b,
        Node("c", OTHER, 7003) as c,
        asyncio.timeout(15),
    ):
        assert await a.heard.get() == (Address(HOST, 7002), "b" * 32)
        assert await b.heard.get() == (Address(HOST, 7001), "a" * 32)
        while len(found := [one for one in c.found() if one.swarm == SWARM[:16]]) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert sorted(one.node for one in found) == ["a" * 32, "b" * 32]
        assert {one.version for one in found} == {PROTOCOL_VERSION}
        assert c.heard.empty()


@pytest.mark.parametrize("error", [OSError("no multicast here"), mdns.ZeroconfError()])
async def test_without_multicast_there_is_one_warning_and_no_harm(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(mdns, "AsyncZeroconf", fail)
    with structlog.testing.capture_logs() as logs:
        async with Node("a", SWARM, 7001) as node:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert node.found() == []
    assert [line["event"] for line in logs] == ["mdns_unavailable"]
    assert "--join" in logs[0]["hint"]


GOOD: dict[bytes, bytes | None] = {
    b"swarm": SWARM[:16].encode(),
    b"node": b"a" * 32,
    b"version": b"1",
}


def test_an_announcement_is_read() -> None:
    found = read_announcement(GOOD, ["10.0.0.1", "fe80::1"], 7777)
    assert found is not None
    assert found.addresses == (Address("10.0.0.1", 7777), Address("fe80::1", 7777))
    assert (found.node, found.swarm, found.version) == ("a" * 32, SWARM[:16], 1)


@pytest.mark.parametrize(
    "change",
    [
        {b"node": b"A" * 32},
        {b"node": None},
        {b"node": b"\xff" * 32},
        {b"swarm": b"ab"},
        {b"swarm": b"x" * 16},
        {b"version": b"-1"},
        {b"version": b"1" * 6},
        {b"version": "²".encode()},
        {b"version": None},
    ],
    ids=str,
)
def test_an_announcement_of_nonsense_is_ignored(change: dict[bytes, bytes | None]) -> None:
    assert read_announcement({**GOOD, **change}, ["10.0.0.1"], 7777) is None


@pytest.mark.parametrize(("hosts", "port"), [([], 1), (["10.0.0.1"], 0), (["10.0.0.1"], None)])
def test_an_announcement_without_a_place_is_ignored(hosts: list[str], port: int | None) -> None:
    assert read_announcement(GOOD, hosts, port) is None


def test_the_addresses_of_an_announcement_are_bounded() -> None:
    found = read_announcement(GOOD, [f"10.0.0.{number}" for number in range(100)], 7777)
    assert found is not None
    assert len(found.addresses) == ADDRESSES_MAX
