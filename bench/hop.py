"""How long does a hop take: an activation from one node's process to another's, over TLS?

Compared with plain TCP between the same two processes, on the same event loop, in alternating
blocks. A hop is half of a round trip. In decoding, hops come one by one with computing between
them, so there are two columns of figures: one hop after the other, and after a rest in which both
processes fall asleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from bench.figures import Finding, percentile
from bench.hop_peer import make_pair
from p2pllm.domain.errors import SwarmError

SIZE_BYTES = 8 * 1024
"""One row of a model with 4,096 columns in a 16-bit type, or of 2,048 in float32."""

REST_S = 0.005
"""What a stage computes between two hops; long enough for the kernel to put a process to sleep."""

ANSWER_TIMEOUT_S = 60.0


async def measure(*, rounds: int = 2_000, runs: int = 5) -> list[Finding]:
    """Time `runs` blocks of each way.

    Raises:
        SwarmError: a process ended or was silent.
    """
    finding = Finding(
        "hop",
        f"{SIZE_BYTES // 1024} KiB activation between two processes",
        {"rounds": rounds, "runs": runs, "loop": "uvloop", "tls": "1.3"},
    )
    samples: dict[tuple[str, float], list[list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="p2pllm-bench-") as folder:
        async with _peers(Path(folder)) as ask:
            for _ in range(runs):
                for rest_s, count in ((0.0, rounds), (REST_S, max(1, rounds // 20))):
                    for way in ("plain", "stream"):
                        taken_us = await ask({"way": way, "rounds": count, "rest_s": rest_s})
                        samples.setdefault((way, rest_s), []).append(taken_us)
    for rest_s, when in ((0.0, "back to back"), (REST_S, f"after {REST_S * 1e3:g} ms rest")):
        for percent in (50, 99):
            plain_name = f"plain TCP p{percent}, {when}"
            for way, name, against in (
                ("plain", plain_name, None),
                ("stream", f"peer stream (TLS) p{percent}, {when}", plain_name),
            ):
                runs_us = samples[way, rest_s]
                finding.add(name, "us", [percentile(run, percent) for run in runs_us], against)
    return [finding]


@contextlib.asynccontextmanager
async def _peers(folder: Path) -> AsyncGenerator[Any, None]:
    """Both processes; gives a function that has a block timed."""
    echo_folder, ask_folder = make_pair(folder)
    processes: list[asyncio.subprocess.Process] = []

    async def start(member: Path, role: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.hop_peer", str(member), role, str(SIZE_BYTES)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        processes.append(process)
        return process

    try:
        echo, ask = await start(echo_folder, "echo"), await start(ask_folder, "ask")
        there = await _read(echo)
        await _write(echo, await _read(ask))
        await _write(ask, there)

        async def timed(block: dict[str, Any]) -> list[float]:
            await _write(ask, block)
            return await _read(ask)

        yield timed
    finally:
        for process in reversed(processes):
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def _read(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), ANSWER_TIMEOUT_S)
    except TimeoutError:
        line = b""
    if not line:
        raise SwarmError("an end of the hop benchmark ended or hangs; see its lines above")
    return json.loads(line)


async def _write(process: asyncio.subprocess.Process, content: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(content).encode() + b"\n")
    await process.stdin.drain()
