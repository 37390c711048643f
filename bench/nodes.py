"""Node processes, started the way people start them, and how long they take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from p2pllm.cli.client import CONTROL_FILE, NodeClient
from p2pllm.domain.errors import SwarmError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 0.02


class BenchNode:
    """One node process.

    Args:
        folder: for its data folder and its log.
        name: of the node.
        environment: added to this process's own.
    """

    def __init__(self, folder: Path, name: str, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.folder = folder / name
        self.started_s = 0.0
        self.api_up_s = 0.0
        """Seconds from the start of the process to its API being up."""
        self._environment = environment or {}
        self._log = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> psutil.Process:
        """To look at."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    async def start(self, *arguments: str) -> None:
        """Start it and wait until its API is up.

        Raises:
            SwarmError: it ended, or took too long.
        """
        self.started_s = time.monotonic()
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "p2pllm", "node", "--exit-with-stdin", "--no-mdns"),
                *("--data-dir", str(self.folder), "--name", self.name),
                *("--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"),
                *arguments,
                # The node leaves when this pipe closes, so it cannot outlive a killed benchmark.
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(os.environ, HF_HUB_OFFLINE="1", **self._environment),
                start_new_session=True,
            )
        await self.wait_for((self.folder / CONTROL_FILE).exists)
        self.api_up_s = time.monotonic() - self.started_s

    def client(self) -> NodeClient:
        """Of its API."""
        return NodeClient.find(self.folder, None)

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds.

        Raises:
            SwarmError: the process ended, or it took too long.
        """
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not condition():
            self.check()
            if time.monotonic() > deadline_s:
                raise SwarmError(f"{self.name} took too long:\n{self._log_tail()}")
            await asyncio.sleep(POLL_INTERVAL_S)

    def check(self) -> None:
        """Raise `SwarmError` if the process has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise SwarmError(
                f"{self.name} ended with {self._process.returncode}:\n{self._log_tail()}"
            )

    async def stop(self) -> None:
        """End it: gracefully, then at once."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


@dataclass(slots=True)
class BenchSwarm:
    """Nodes that serve one model.

    Attributes:
        nodes: the first made the swarm.
        ready_s: from the first process's start to every layer held, as all of them see it.
        status: then, as the first node sees it.
    """

    nodes: list[BenchNode]
    ready_s: float = 0.0
    status: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def model(self) -> str:
        """What is served."""
        return str(self.status["models"][0]["id"])

    def layers_of(self, node: BenchNode) -> list[list[int]]:
        """Half-open ranges that a node holds."""
        member = next(item for item in self.status["members"] if item["name"] == node.name)
        return [holding["layers"] for holding in member["holdings"]]


@contextlib.asynccontextmanager
async def running_swarm(
    folder: Path,
    count: int,
    *arguments: str,
    reference: str,
    layers_max: int,
    environment: dict[str, str] | None = None,
) -> AsyncGenerator[BenchSwarm, None]:
    """`count` nodes that serve the model at `reference`, each at most `layers_max` layers."""
    await asyncio.to_thread(folder.mkdir)
    nodes = [
        BenchNode(folder, f"{folder.name}-{number + 1}", environment) for number in range(count)
    ]
    limit = (*arguments, "--max-layers", str(layers_max))
    swarm = BenchSwarm(nodes)
    try:
        await nodes[0].start("--model", reference, *limit)
        if count > 1:
            async with nodes[0].client() as client:
                invite = await client.create_invite(uses=count - 1, lifetime_s=3_600)
            async with asyncio.TaskGroup() as tasks:
                for node in nodes[1:]:
                    tasks.create_task(node.start("--join", invite, *limit))
        for node in reversed(nodes):
            swarm.status = await _ready(node, count)
        swarm.ready_s = time.monotonic() - nodes[0].started_s
        yield swarm
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


async def _ready(node: BenchNode, count: int) -> dict[str, Any]:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    async with node.client() as client:
        while True:
            node.check()
            status = await client.status()
            alive = [member for member in status["members"] if member["state"] == "alive"]
            settled = all(
                member["holdings"]
                and all(holding["state"] == "ready" for holding in member["holdings"])
                for member in alive
            )
            models = status["models"]
            if len(alive) == count and settled and models and models[0]["p2pllm"]["ready"]:
                return status
            if time.monotonic() > deadline_s:
                raise SwarmError(f"{node.name} does not see the swarm ready")
            await asyncio.sleep(POLL_INTERVAL_S)


@dataclass(frozen=True, slots=True)
class Told:
    """One generation as its client saw it.

    Attributes:
        tokens: how many came.
        first_s: from asking to the first text.
        tokens_per_s: after the first token, as the gateway counted.
        hops: nodes it went through.
        token_ids: what was generated.
    """

    tokens: int
    first_s: float
    tokens_per_s: float
    hops: int
    token_ids: tuple[int, ...]


async def tell(client: NodeClient, model: str, prompt: list[int], tokens: int) -> Told:
    """One greedy generation from token ids.

    Raises:
        P2PLLMError: it failed.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "p2pllm": {"details": True},
    }
    asked_s = time.perf_counter()
    first_s = 0.0
    details: dict[str, Any] = {}
    async for chunk in client.stream("/v1/completions", body):
        if not first_s and any(choice["text"] for choice in chunk["choices"]):
            first_s = time.perf_counter() - asked_s
        details |= chunk.get("p2pllm") or {}
    ids = tuple(details["token_ids"])
    return Told(
        tokens=len(ids),
        first_s=first_s,
        tokens_per_s=float(details["timings"]["tokens_per_s"]),
        hops=len(details["path"]),
        token_ids=ids,
    )
