"""`p2pllm demo` does what it promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import psutil
import pytest

from p2pllm.cli.main import EXIT_INTERRUPTED
from tests.processes.cluster import ROOT, environment

pytestmark = [pytest.mark.processes, pytest.mark.timeout(150)]


class Demo:
    """A running `p2pllm demo` whose temporary folders are made in `folder`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.nodes: list[psutil.Process] = []

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, [node.cmdline() for node in self.running()]
            await asyncio.sleep(0.05)

    async def until_nodes(self, count: int) -> None:
        """Until that many node processes were started."""

        def are_there() -> bool:
            assert self.process.returncode is None, "the demo ended early"
            with contextlib.suppress(psutil.NoSuchProcess):
                self.nodes = psutil.Process(self.process.pid).children(recursive=True)
            return len(self.nodes) >= count

        await self.until(are_there)

    def running(self) -> list[psutil.Process]:
        """Nodes that are still there."""
        return [
            node
            for node in self.nodes
            if node.is_running() and node.status() != psutil.STATUS_ZOMBIE
        ]

    def folders(self) -> list[Path]:
        """The demo's own; torch keeps an empty cache of its own beside them."""
        return list(self.folder.glob("p2pllm-demo-*"))


@contextlib.asynccontextmanager
async def demo(folder: Path, *arguments: str) -> AsyncGenerator[Demo, None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "p2pllm", "demo", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment() | {"TMPDIR": str(folder)},
        cwd=ROOT,
    )
    made = Demo(process, folder)
    try:
        yield made
    finally:
        if process.returncode is None:
            process.kill()
        # Also closes the pipes.
        await process.communicate()
        for node in made.running():
            with contextlib.suppress(psutil.NoSuchProcess):
                node.kill()


async def test_it_tells_a_story_over_two_nodes_and_cleans_up(tmp_path: Path) -> None:
    async with demo(tmp_path, "--nodes", "2", "--max-tokens", "20", "--json") as running:
        await running.until_nodes(2)
        output, errors = await running.process.communicate()
        assert running.process.returncode == 0, errors.decode()
        assert running.running() == []
        assert running.folders() == []
    story = json.loads(output)
    assert errors == b""
    assert story["model"] == "builtin"
    assert story["text"].strip()
    assert 0 < len(story["token_ids"]) <= 20
    assert story["attempts"] == 1
    assert len({hop["node"] for hop in story["path"]}) == 2
    assert story["path"][0]["layers"][0] == 0
    assert {member["state"] for member in story["members"]} == {"alive"}
    assert len(story["members"]) == 2


async def interrupted(folder: Path, number: signal.Signals, *, in_story: bool) -> int | None:
    """Send a signal in the middle; the exit code, once everything is gone."""
    async with demo(folder, "--nodes", "2", "--max-tokens", "400") as running:
        if in_story:
            assert running.process.stdout is not None
            async with asyncio.timeout(90):
                await running.process.stdout.readexactly(len("Once upon a time"))
        await running.until_nodes(2 if in_story else 1)
        assert running.folders() != []
        running.process.send_signal(number)
        async with asyncio.timeout(30):
            await running.process.communicate()
        assert running.running() == []
        assert running.folders() == []
        return running.process.returncode


async def test_ctrl_c_and_sigterm_end_everything_it_started(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    codes = await asyncio.gather(
        interrupted(tmp_path / "a", signal.SIGINT, in_story=True),
        interrupted(tmp_path / "b", signal.SIGINT, in_story=False),
        interrupted(tmp_path / "c", signal.SIGTERM, in_story=False),
    )
    assert codes == [EXIT_INTERRUPTED] * 3


async def test_nodes_do_not_outlive_a_demo_that_was_killed(tmp_path: Path) -> None:
    async with demo(tmp_path, "--nodes", "2", "--max-tokens", "400") as running:
        await running.until_nodes(2)
        running.process.kill()
        await running.process.communicate()
        await running.until(lambda: running.running() == [], timeout_s=40)
