"""A node's API in another thread, for commands that are run as they are from a shell."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2pllm.api.metrics import Metrics
from p2pllm.api.server import ApiServer
from p2pllm.api.status import status_json
from p2pllm.cli.client import CONTROL_FILE
from p2pllm.cli.main import run
from p2pllm.domain.ids import ModelId, SwarmId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.records import HoldingState, MemberState, SwarmView
from tests.api.fakes import TOKEN, FakeControl, FakeGateway, spec
from tests.core.swarm_worlds import holding, member, node_id, record, view_of

SWARM = SwarmId("5" * 64)
FAKE = ModelId("fake")


def view() -> SwarmView:
    """Four layers; the third is still being loaded, and the last on a node that is gone."""
    one = record(node_id(1), holdings=(holding(0, 2, name=FAKE),))
    two = record(
        node_id(2),
        holdings=(holding(1, 2, name=FAKE), holding(2, 3, HoldingState.LOADING, FAKE)),
    )
    gone = record(node_id(3), holdings=(holding(3, 4, name=FAKE),))
    return view_of(
        member(one, sessions=3, tokens_per_s=12.5),
        member(two),
        member(gone, MemberState.DEAD),
        models=(spec(),),
        self_id=node_id(1),
        round_trip_s={node_id(2): 0.0015},
    )


@dataclass
class ShownControl(FakeControl):
    """A control with answers that have all there is to show."""

    gateway: FakeGateway = field(default_factory=FakeGateway)

    def status(self) -> dict[str, Any]:
        return status_json(
            view(), self.gateway.models(), swarm=SWARM, software="p2pllm 0", uptime_s=1.0
        )

    async def add_model(self, reference: str, name: str | None) -> dict[str, Any]:
        return {**await super().add_model(reference, name), "p2pllm": {"layers": 4}}

    async def plan(self, reference: str) -> dict[str, Any]:
        await super().plan(reference)
        return {
            "model": {"id": reference},
            "nodes": [
                {
                    "id": node_id(1),
                    "name": "[desk]",
                    "layers": [[0, 2]],
                    "bytes": 3 * 2**20,
                    "load_bytes": 0,
                }
            ],
            "copies": [1, 1, 0, 0],
            "missing": [[2, 4]],
        }


@dataclass
class RunningNode:
    """A fake node, and commands on the machine it runs on."""

    data_dir: Path
    gateway: FakeGateway
    control: ShownControl

    def run(self, *arguments: str) -> int:
        """The exit code of a command."""
        return run([*arguments, "--data-dir", str(self.data_dir)])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    gateway = FakeGateway(missing=(LayerRange(2, 4),), names=("fake",))
    made = RunningNode(tmp_path / "node", gateway, ShownControl(gateway=gateway))
    made.data_dir.mkdir()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(work: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), loop).result(10)

    stack = AsyncExitStack()

    async def start() -> None:
        server = await stack.enter_async_context(
            ApiServer(
                gateway,
                made.control,
                host="127.0.0.1",
                port=0,
                control_token=TOKEN,
                metrics=Metrics(),
            )
        )
        content = {"host": "127.0.0.1", "port": server.port, "token": TOKEN, "pid": 1}
        (made.data_dir / CONTROL_FILE).write_text(json.dumps(content))

    try:
        on_loop(start)
        yield made
    finally:
        on_loop(stack.aclose)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
