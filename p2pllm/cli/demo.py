"""`p2pllm demo`: a swarm of several node processes on this machine tells a story."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pllm.cli.client import CONTROL_FILE, NodeClient
from p2pllm.cli.models import reference_for_node
from p2pllm.cli.options import Json
from p2pllm.cli.output import console, format_layers, format_rate, messages, print_json
from p2pllm.domain.errors import P2PLLMError, SwarmError

START_TIMEOUT_S = 90.0
"""From starting a process to its API answering; imports of torch dominate on a cold disk."""

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.25
NODES_MAX = 16
LOG_TAIL_LINES = 15


def demo(
    nodes: Annotated[int, typer.Option(min=1, max=NODES_MAX, help="Node processes.")] = 3,
    prompt: Annotated[str, typer.Option(help="How the story begins.")] = "Once upon a time",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 200,
    model: Annotated[str, typer.Option(metavar="REF", help="A folder, a hub id, or `builtin`.")] = (
        "builtin"
    ),
    as_json: Json = False,
) -> None:
    """Start a swarm on this machine, let it tell a story, and clean up.

    Example: p2pllm demo --nodes 4 --prompt "A small fox"
    """
    try:
        result = asyncio.run(_demo(nodes, prompt, max_tokens, reference_for_node(model), as_json))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    if as_json:
        print_json(result)
        return
    console.print(
        "\nThe same on real machines:\n"
        "  1. on the first:   [bold]p2pllm node[/bold]            (prints a join line)\n"
        "  2. on the others:  [bold]p2pllm node --join …[/bold]   (that line)\n"
        '  3. on any of them: [bold]p2pllm run builtin "Once upon a time"[/bold], or point an '
        "OpenAI client\n"
        "     at http://127.0.0.1:7771/v1\n"
        "Your own model: [bold]p2pllm models add FOLDER_OR_HUB_ID[/bold]"
    )


class DemoNode:
    """One node process with its own folder, ports and log."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name = f"node-{number}"
        self.folder = folder / self.name
        self._log = folder / f"{self.name}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        """Start the process."""
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "p2pllm", "node", "--exit-with-stdin"),
                *("--data-dir", str(self.folder), "--name", self.name),
                *("--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--threads", "1"),
                *arguments,
                # The node leaves when this pipe closes, so it cannot outlive a killed demo.
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo, which then stops its nodes in order.
                start_new_session=True,
            )

    async def client(self) -> NodeClient:
        """A client of its API, once it is up.

        Raises:
            SwarmError: the process ended, or took too long.
        """
        async with _limit(START_TIMEOUT_S, f"{self.name} did not start in time", self):
            while not (self.folder / CONTROL_FILE).exists():
                self.check()
                await asyncio.sleep(POLL_INTERVAL_S)
        return NodeClient.find(self.folder, None)

    def check(self) -> None:
        """Raise `SwarmError` if the process has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise SwarmError(
                f"{self.name} ended with code {self._process.returncode}:\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        """The last lines it logged."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    async def stop(self) -> None:
        """End the process: gracefully, then at once."""
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


@contextlib.asynccontextmanager
async def _limit(timeout_s: float, message: str, node: DemoNode) -> AsyncGenerator[None, None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise SwarmError(f"{message}:\n{node.log_tail()}") from None


async def _demo(
    count: int, prompt: str, max_tokens: int, reference: str, quiet: bool
) -> dict[str, Any]:
    task = asyncio.current_task()
    assert task is not None
    # SIGTERM ends the demo as Ctrl-C does: by way of the cleanup below.
    with contextlib.suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="p2pllm-demo-") as temporary:
        nodes = [DemoNode(number, Path(temporary)) for number in range(1, count + 1)]
        try:
            return await _tell(nodes, prompt, max_tokens, reference, quiet)
        finally:
            await asyncio.shield(asyncio.gather(*(node.stop() for node in nodes)))


async def _tell(
    nodes: list[DemoNode], prompt: str, max_tokens: int, reference: str, quiet: bool
) -> dict[str, Any]:
    def say(line: str) -> None:
        messages.print(line, style="cyan", markup=False)

    if not quiet:
        say(f"Starting {len(nodes)} nodes, each its own process with its own identity and ports …")
    first = nodes[0]
    limit: tuple[str, ...] = ()
    if (layers := await _count_layers(reference)) is not None:
        # One layer more than an even share: all nodes are needed, and the ranges overlap a little.
        limit = ("--max-layers", str(min(layers, -(-layers // len(nodes)) + 1)))
    await first.start("--model", reference, *limit)
    async with await first.client() as client:
        for node in nodes[1:]:
            invite = await client.create_invite(uses=1, lifetime_s=3_600)
            await node.start("--join", invite, *limit)
        status = await _wait_until_ready(client, nodes, say if not quiet else _silent)
    served = status["models"][0]["id"]
    # Ask the last one to join: any node answers, wherever the layers are.
    async with await nodes[-1].client() as client:
        await _wait_until_ready(client, nodes, _silent)
        if not quiet:
            say(f"\nAsking {nodes[-1].name} to go on from: {prompt}\n")
            console.out(prompt, end="", highlight=False)
        result = await _story(client, served, prompt, max_tokens, quiet)
    names = {member["id"]: member["name"] for member in status["members"]}
    if not quiet:
        timings = result["timings"]
        path = " > ".join(
            f"{names[hop['node']]} ({format_layers([hop['layers']])})" for hop in result["path"]
        )
        say(
            f"\n\n{len(result['token_ids'])} tokens at {format_rate(timings['tokens_per_s'])}, "
            f"first after {timings['first_token_s']:.2f} s\npath: {path}"
        )
    return {"model": served, "prompt": prompt, "members": status["members"], **result}


async def _count_layers(reference: str) -> int | None:
    """Layers of the model, read from its configuration; None where that does not say."""
    from p2pllm.app.models import references
    from p2pllm.weights.checkpoint import open_checkpoint

    config = open_checkpoint(await references().resolve(reference)).config
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None


async def _wait_until_ready(
    client: NodeClient, nodes: list[DemoNode], say: Callable[[str], None]
) -> dict[str, Any]:
    """Tell who joins and who takes which layers, until every layer has a holder."""
    known: dict[str, list[list[int]]] = {}
    async with _limit(READY_TIMEOUT_S, "the swarm did not get ready in time", nodes[0]):
        while True:
            for node in nodes:
                node.check()
            try:
                status = await client.status()
            except SwarmError:
                # Most likely its process has just ended, which the next round will say.
                await asyncio.sleep(POLL_INTERVAL_S)
                nodes[0].check()
                raise
            for member in status["members"]:
                if member["id"] not in known:
                    say(f"{member['name']} ({member['id'][:8]}) joined")
                    known[member["id"]] = []
                ready = [
                    holding["layers"]
                    for holding in member["holdings"]
                    if holding["state"] == "ready"
                ]
                if ready != known[member["id"]]:
                    known[member["id"]] = ready
                    say(f"{member['name']} holds layers {format_layers(ready)}")
            if (
                sum(member["state"] == "alive" for member in status["members"]) == len(nodes)
                and status["models"]
                and status["models"][0]["p2pllm"]["ready"]
            ):
                return status
            await asyncio.sleep(POLL_INTERVAL_S)


def _silent(line: str) -> None:
    """Say nothing."""


async def _story(
    client: NodeClient, model: str, prompt: str, max_tokens: int, quiet: bool
) -> dict[str, Any]:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "seed": 7,
        "p2pllm": {"details": True},
    }
    text: list[str] = []
    details: dict[str, Any] = {}
    async for chunk in client.stream("/v1/completions", body):
        details |= chunk.get("p2pllm") or {}
        for choice in chunk["choices"]:
            text.append(choice["text"])
            if not quiet:
                console.out(choice["text"], end="", highlight=False)
    if not text:
        raise P2PLLMError("the swarm answered with no text; run `p2pllm demo` again with --json")
    return {"text": "".join(text), **details}
