"""A whole node in this process: what it makes, what it leaves behind, what it remembers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from p2pllm.app.config import NodeConfig
from p2pllm.app.node import CONTROL_FILE, NodeInformation, run_node
from p2pllm.app.state import load_state
from p2pllm.cli.client import NodeClient
from p2pllm.domain.errors import ConfigurationError, ModelNotFoundError, P2PLLMError
from p2pllm.domain.records import Address
from p2pllm.security.invites import parse_invite

FREE = Address("127.0.0.1", 0)


def config(folder: Path, **changes: Any) -> NodeConfig:
    usual: dict[str, Any] = {
        "data_dir": folder,
        "name": "desk",
        "listen": FREE,
        "api": FREE,
        "memory_bytes": 2**26,
        "threads": 1,
        "device": "cpu",
        "dtype": "float32",
        "mdns": False,
    }
    return NodeConfig(**{**usual, **changes})


@asynccontextmanager
async def running(config: NodeConfig) -> AsyncIterator[NodeInformation]:
    leave = asyncio.Event()
    ready: asyncio.Future[NodeInformation] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        node = tasks.create_task(run_node(config, leave=leave, on_ready=ready.set_result))
        await asyncio.wait((node, ready), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            try:
                yield ready.result()
            finally:
                leave.set()


async def test_a_node_founds_a_swarm_and_finds_it_again(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "node"
    async with running(config(folder, models=(str(tiny_folder),))) as first:
        assert first.invite is not None
        invite = parse_invite(first.invite)
        assert (invite.swarm, invite.addresses) == (first.swarm, first.addresses)
        assert (folder / CONTROL_FILE).stat().st_mode & 0o777 == 0o600
        async with NodeClient.find(folder, None) as client:
            assert client.address == first.api
            status = await client.status()
            assert status["node"] == first.node
            while not status["models"][0]["p2pllm"]["ready"]:
                await asyncio.sleep(0.05)
                status = await client.status()
    assert not (folder / CONTROL_FILE).exists()

    before = load_state(folder)[0].incarnation
    async with running(config(folder)) as second:
        assert (second.node, second.swarm) == (first.node, first.swarm)
        assert second.invite is None, "one comes with founding, others with `p2pllm invite`"
        async with NodeClient.find(folder, None) as client:
            assert [m["id"] for m in (await client.status())["models"]] == ["tiny"]
    assert load_state(folder)[0].incarnation > before


async def fails(wrong: NodeConfig) -> P2PLLMError:
    with pytest.raises(P2PLLMError) as caught:
        await run_node(wrong, leave=asyncio.Event(), on_ready=lambda _: None)
    assert not (wrong.data_dir / CONTROL_FILE).exists()
    return caught.value


async def test_what_keeps_a_node_from_starting_is_one_error_that_people_can_read(
    tmp_path: Path,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address("127.0.0.1", taken.getsockname()[1])
        for option in ("listen", "api"):
            error = await fails(config(tmp_path / option, **{option: address}))
            assert isinstance(error, ConfigurationError)
            assert str(address.port) in str(error)
    error = await fails(config(tmp_path / "model", models=(str(tmp_path / "none"),)))
    assert isinstance(error, ModelNotFoundError)
