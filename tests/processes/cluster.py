"""Real node processes for tests: started, asked, killed, and gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from p2pllm.cli.client import CONTROL_FILE, NodeClient

ROOT = Path(__file__).resolve().parent.parent.parent
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
        assert self.process is not None
        process = await asyncio.create_subprocess_exec(
            *(*self._prefix, sys.executable, "-m", "p2pllm"),
            *(*arguments, "--data-dir", str(self.data_dir), "--json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, f"{arguments}: {errors.decode()}\n{self.log.read_text()}"
        return json.loads(output)

    async def wait_for(self, condition: Callable[[], bool], complaint: str) -> None:
        """Until `condition` holds."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not condition():
            assert self.process is not None
            assert self.process.returncode is None, f"{self.name} ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline_s, f"{complaint}:\n{self.log.read_text()}"
            await asyncio.sleep(0.05)

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
        (self.data_dir / CONTROL_FILE).unlink(missing_ok=True)

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
            if node.process is not None and node.process.returncode is None:
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
        assert time.monotonic() < deadline_s, f"still not so: {json.dumps(status, indent=1)}"
        await asyncio.sleep(0.1)


def alive(status: dict[str, Any]) -> set[str]:
    """Names of the members that are alive."""
    return {member["name"] for member in status["members"] if member["state"] == "alive"}


def is_ready(status: dict[str, Any], model: str) -> bool:
    """Whether every layer of a model has a holder."""
    return any(entry["id"] == model and entry["p2pllm"]["ready"] for entry in status["models"])


async def complete(
    client: NodeClient,
    model: str,
    prompt: str,
    *,
    max_tokens: int = 40,
    **options: Any,
) -> dict[str, Any]:
    """A greedy completion with its details: text, token_ids, path."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "p2pllm": {"details": True},
        **options,
    }
    text: list[str] = []
    details: dict[str, Any] = {"paths": []}
    async for chunk in client.stream("/v1/completions", body):
        found = chunk.get("p2pllm") or {}
        if "path" in found and not chunk["choices"]:
            details["paths"].append(found["path"])
        details |= found
        text.extend(choice["text"] for choice in chunk["choices"])
    return {"text": "".join(text), **details}
