"""Real node processes for tests: started, asked, killed, and gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pllm.cli.client import CONTROL_FILE, NodeClient

ROOT = Path(__file__).resolve().parent.parent.parent
LOCAL = ("--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--no-mdns")
"""Options of nodes that share this machine with others: free ports, no shouting."""

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


def environment() -> dict[str, str]:
    """What node processes run with: few threads, no hub, this checkout."""
    return dict(
        os.environ,
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        PYTHONPATH=str(ROOT),
        PYTHONUNBUFFERED="1",
    )


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended.

    Attributes:
        code: its exit code.
        output: what it printed.
        errors: what it complained of.
    """

    code: int
    output: str
    errors: str


async def run_command(*arguments: str, prefix: Sequence[str] = ()) -> Done:
    """Run a command of ours to its end."""
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", "p2pllm", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), START_TIMEOUT_S)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Done(process.returncode, output.decode(), errors.decode())


class NodeProcess:
    """One node.

    Args:
        folder: its data folder is made in here, and its log.
        name: of the node.
        prefix: a command that runs it somewhere else, such as on a virtual host.
    """

    def __init__(self, folder: Path, name: str, prefix: tuple[str, ...] = ()) -> None:
        self.name = name
        self.data_dir = folder / name
        self.log = folder / f"{name}.log"
        self._prefix = prefix
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        """Start it; see `ready`."""
        # What a killed node has left behind says nothing about this one.
        (self.data_dir / CONTROL_FILE).unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*self._prefix, sys.executable, "-m", "p2pllm", "node", "--exit-with-stdin"),
                *("--data-dir", str(self.data_dir), "--name", self.name, "--threads", "1"),
                *("--memory", "512MiB", "--dtype", "float32"),
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(),
                cwd=ROOT,
                start_new_session=True,
            )

    async def ready(self) -> NodeClient:
        """A client of its API once that is up."""
        await self.wait_for(lambda: (self.data_dir / CONTROL_FILE).exists(), "did not start")
        return NodeClient.find(self.data_dir, None)

    async def command(self, *arguments: str) -> Any:
        """What a command prints as JSON, run as the owner would where this node runs."""
        done = await run_command(
            *(*arguments, "--data-dir", str(self.data_dir), "--json"), prefix=self._prefix
        )
        assert done.code == 0, f"{arguments}: {done.errors}\n{self.log.read_text()}"
        return json.loads(done.output)

    async def wait_for(self, condition: Callable[[], bool], complaint: str) -> None:
        """Until `condition` holds."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not condition():
            assert self.process is not None
            assert self.process.returncode is None, f"{self.name} ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline_s, f"{complaint}:\n{self.log.read_text()}"
            await asyncio.sleep(0.05)

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self.process is not None and self.process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, and to whatever runs it elsewhere."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    async def kill(self) -> None:
        """End it without a chance to say anything."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        await self.process.wait()

    async def stop(self) -> int:
        """Ask it to leave; the exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                await self.kill()
                raise AssertionError(
                    f"{self.name} did not leave:\n{self.log.read_text()}"
                ) from None
        assert self.process.returncode is not None
        return self.process.returncode


@contextlib.asynccontextmanager
async def cluster() -> AsyncGenerator[list[NodeProcess], None]:
    """A list to put nodes into; all that are in it at the end are killed."""
    nodes: list[NodeProcess] = []
    try:
        yield nodes
    finally:
        for node in nodes:
            if node.is_running:
                await node.kill()


async def wait_for_status(
    client: NodeClient,
    condition: Callable[[dict[str, Any]], bool],
    *,
    timeout_s: float = 45.0,
) -> dict[str, Any]:
    """The status once `condition` holds of it."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        status = await client.status()
        if condition(status):
            return status
        assert time.monotonic() < deadline_s, f"still not so: {json.dumps(status)}"
        await asyncio.sleep(0.1)


def alive(status: dict[str, Any]) -> set[str]:
    """Names of the members that are alive."""
    return {member["name"] for member in status["members"] if member["state"] == "alive"}


def is_ready(status: dict[str, Any], model: str) -> bool:
    """Whether every layer of a model has a holder."""
    return any(entry["id"] == model and entry["p2pllm"]["ready"] for entry in status["models"])


@dataclass(slots=True)
class Generated:
    """What a streamed generation brought.

    Attributes:
        text: all of it.
        pieces: as they came.
        paths: one per attempt, as node ids with (start, stop).
        details: field `p2pllm` of the last chunk.
    """

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    paths: list[list[tuple[str, tuple[int, int]]]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def token_ids(self) -> list[int]:
        """All that were generated."""
        return self.details["token_ids"]

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where one hop of the last path ends and the next begins."""
        return tuple(stop for _, (_, stop) in self.paths[-1][:-1])


async def complete(
    client: NodeClient,
    model: str,
    prompt: str | list[int],
    *,
    max_tokens: int = 40,
    after: tuple[int, Callable[[Generated], Awaitable[None]]] | None = None,
    into: Generated | None = None,
    **options: Any,
) -> Generated:
    """A greedy streamed completion with its details.

    Args:
        client: of the gateway.
        model: which.
        prompt: text or tokens.
        max_tokens: most to generate.
        after: what to do once that many pieces of text have come.
        into: what has come by the time of an error is in here.
        options: more fields of the request.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "p2pllm": {"details": True},
        **options,
    }
    result = Generated() if into is None else into
    async for chunk in client.stream("/v1/completions", body):
        found = chunk.get("p2pllm") or {}
        if "attempt" in found:
            result.paths.append([(hop["node"], tuple(hop["layers"])) for hop in found["path"]])
        else:
            result.details |= found
        for choice in chunk["choices"]:
            if choice["text"]:
                result.pieces.append(choice["text"])
        if after is not None and len(result.pieces) >= after[0]:
            todo, after = after[1], None
            await todo(result)
    result.text = "".join(result.pieces)
    return result


@dataclass(slots=True)
class Swarm:
    """Nodes of one swarm, by name; the first one made it.

    Attributes:
        nodes: all of them.
        clients: of those that are up.
    """

    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    clients: dict[str, NodeClient] = field(default_factory=dict)

    async def up(self, name: str, *arguments: str) -> NodeClient:
        """Start the node (again) and wait for its API."""
        await self.down_client(name)
        await self.nodes[name].start(*LOCAL, *arguments)
        self.clients[name] = await (await self.nodes[name].ready()).__aenter__()
        return self.clients[name]

    async def down_client(self, name: str) -> None:
        """Let go of the client of a node that has ended."""
        client = self.clients.pop(name, None)
        if client is not None:
            await client.__aexit__(None, None, None)

    def name_of(self, status: dict[str, Any], node: str) -> str:
        """The name behind a node's id."""
        return next(member["name"] for member in status["members"] if member["id"] == node)


@contextlib.asynccontextmanager
async def swarm(folder: Path, **arguments: Sequence[str]) -> AsyncGenerator[Swarm, None]:
    """A running swarm; `arguments` are the options of each node, by its name."""
    made = Swarm()
    async with cluster() as nodes:
        for name in arguments:
            made.nodes[name] = NodeProcess(folder, name)
            nodes.append(made.nodes[name])
        try:
            (first, options), *others = arguments.items()
            client = await made.up(first, *options)
            invite = await client.create_invite(uses=max(1, len(others)), lifetime_s=3_600)
            async with asyncio.TaskGroup() as tasks:
                for name, more in others:
                    tasks.create_task(made.up(name, "--join", invite, *more))
            await wait_for_status(
                client, lambda status: alive(status) == set(arguments), timeout_s=START_TIMEOUT_S
            )
            yield made
        finally:
            for name in list(made.clients):
                await made.down_client(name)


def sessions(status: dict[str, Any]) -> int:
    """Sessions that hold a KV cache, all nodes together."""
    return sum((member["load"] or {"sessions": 0})["sessions"] for member in status["members"])
