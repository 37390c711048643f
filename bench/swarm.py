"""What does a swarm cost, beside transformers alone on the same machine?

Four kinds of processes run side by side and take turns, so that whatever else the machine does
hits all alike: three nodes, one node, one process with transformers alone, and one that has
only imported torch and transformers. In each run each of the first three tells the same greedy
continuation of the same token ids; that they tell the same is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psutil

from bench.figures import Finding
from bench.models import BenchModel, builtin_model, random_llama
from bench.nodes import BenchSwarm, running_swarm, tell
from p2pllm.domain.errors import SwarmError

NODES = 3
PROMPT = "Once upon a time"
ANSWER_TIMEOUT_S = 120.0
MIB = 2**20


async def measure(
    *, runs: int = 5, tokens: int = 64, threads: int = 1, idle_s: float = 20.0
) -> list[Finding]:
    """Measure with the built-in model and with a larger random one.

    Args:
        runs: generations of each kind.
        tokens: per generation.
        threads: of torch, per process.
        idle_s: how long idle nodes are watched; 0 leaves that out.

    Raises:
        P2PLLMError: a node does not start or serve.
    """
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="p2pllm-bench-") as temporary:
        folder = Path(temporary)
        models = [
            await asyncio.to_thread(builtin_model),
            await asyncio.to_thread(random_llama, folder / "random-llama"),
        ]
        for number, model in enumerate(models):
            place = folder / f"run-{number}"
            place.mkdir()
            # Idling does not depend on the model.
            watch_s = idle_s if number == 0 else 0.0
            findings.append(await _measure_model(place, model, runs, tokens, threads, watch_s))
    return findings


async def _measure_model(
    folder: Path, model: BenchModel, runs: int, tokens: int, threads: int, idle_s: float
) -> Finding:
    finding = Finding(
        "swarm",
        model.name,
        {
            "nodes": NODES,
            "threads per process": threads,
            "dtype": "float32",
            "tokens": tokens,
            "runs": runs,
            "load at start": round(os.getloadavg()[0], 2),
        },
    )
    prompt = await asyncio.to_thread(_encoded, model)
    arguments = ("--threads", str(threads), "--dtype", "float32", "--memory", "1GiB")
    share = -(-model.layers // NODES)
    async with contextlib.AsyncExitStack() as stack:
        # One after the other, so that none is started beside another's start.
        floor = await stack.enter_async_context(_alone(threads, None))
        alone = await stack.enter_async_context(_alone(threads, model))
        single, many = [
            await stack.enter_async_context(
                running_swarm(
                    folder / name,
                    count,
                    *arguments,
                    reference=model.reference,
                    layers_max=layers_max,
                )
            )
            for name, count, layers_max in (("one", 1, model.layers), ("many", NODES, share))
        ]
        await _measure_speed(finding, alone, single, many, prompt, tokens, runs)
        _measure_start(finding, single, many)
        if idle_s > 0:
            await _measure_idle(finding, single, many, idle_s)
        _measure_memory(finding, floor, alone, single, many, model)
    return finding


async def _measure_speed(
    finding: Finding,
    alone: asyncio.subprocess.Process,
    single: BenchSwarm,
    many: BenchSwarm,
    prompt: list[int],
    tokens: int,
    runs: int,
) -> None:
    speeds: dict[str, list[float]] = {"alone": [], "one": [], "many": []}
    firsts: dict[str, list[float]] = {"alone": [], "one": [], "many": []}
    async with single.nodes[0].client() as one, many.nodes[-1].client() as last:
        for run in range(-1, runs):
            answer = await _ask(alone, {"prompt": prompt, "tokens": tokens})
            told_one = await tell(one, single.model, prompt, tokens)
            told_many = await tell(last, many.model, prompt, tokens)
            if told_many.hops != NODES or told_one.hops != 1:
                raise SwarmError(f"{told_one.hops} and {told_many.hops} hops, not 1 and {NODES}")
            if not list(told_many.token_ids) == list(told_one.token_ids) == answer["token_ids"]:
                raise SwarmError("a swarm and transformers alone do not tell the same")
            if run < 0:  # The first is to warm up.
                continue
            for name, speed, first_s in (
                ("alone", answer["tokens_per_s"], answer["first_s"]),
                ("one", told_one.tokens_per_s, told_one.first_s),
                ("many", told_many.tokens_per_s, told_many.first_s),
            ):
                speeds[name].append(speed)
                firsts[name].append(first_s * 1e3)
    for title, unit, samples in (
        ("decode", "tokens/s", speeds),
        ("time to first token", "ms", firsts),
    ):
        finding.add(f"{title}, transformers alone", unit, samples["alone"])
        reference = f"{title}, transformers alone"
        finding.add(f"{title}, 1 node", unit, samples["one"], reference)
        finding.add(f"{title}, {NODES} nodes", unit, samples["many"], reference)
    finding.add("decode step, 1 node", "ms", [1e3 / speed for speed in speeds["one"]])
    finding.add(
        f"decode step, {NODES} nodes",
        "ms",
        [1e3 / speed for speed in speeds["many"]],
        "decode step, 1 node",
    )


def _measure_start(finding: Finding, single: BenchSwarm, many: BenchSwarm) -> None:
    nodes = (*single.nodes, *many.nodes)
    finding.add("process start to API up", "s", [node.api_up_s for node in nodes])
    finding.add("process start to ready, 1 node", "s", [single.ready_s])
    finding.add(
        f"first process start to ready, {NODES} nodes",
        "s",
        [many.ready_s],
        "process start to ready, 1 node",
    )


async def _measure_idle(
    finding: Finding, single: BenchSwarm, many: BenchSwarm, idle_s: float
) -> None:
    processes = [node.process for node in (*single.nodes, *many.nodes)]
    before = [_cpu_s(process) for process in processes]
    await asyncio.sleep(idle_s)
    percents = [
        100 * (_cpu_s(process) - used) / idle_s
        for process, used in zip(processes, before, strict=True)
    ]
    count = len(single.nodes)
    finding.add("idle CPU, 1 node", "% of a core", percents[:count])
    finding.add(
        f"idle CPU, each of {NODES} nodes", "% of a core", percents[count:], "idle CPU, 1 node"
    )


def _measure_memory(
    finding: Finding,
    floor: asyncio.subprocess.Process,
    alone: asyncio.subprocess.Process,
    single: BenchSwarm,
    many: BenchSwarm,
    model: BenchModel,
) -> None:
    """Memory of all at the same moment, since PSS divides what processes share."""
    bare = _memory(psutil.Process(floor.pid))
    reference = _memory(psutil.Process(alone.pid))
    nodes = [
        (_memory(node.process), _held_bytes(model, swarm.layers_of(node)))
        for swarm in (single, many)
        for node in swarm.nodes
    ]
    # Between generations no cache is held, so what is beyond the weights is the program's.
    for kind in ("rss", "pss", "uss"):
        base = f"{kind.upper()}, torch and transformers imported"
        finding.add(base, "MiB", [bare[kind] / MIB])
        finding.add(
            f"{kind.upper()} beyond weights, transformers alone",
            "MiB",
            [(reference[kind] - _size_bytes(model)) / MIB],
            base,
        )
        finding.add(
            f"{kind.upper()} beyond weights, node",
            "MiB",
            [(memory[kind] - held) / MIB for memory, held in nodes],
            base,
        )


def _is_tied(model: BenchModel) -> bool:
    config = json.loads((model.folder / "config.json").read_text())
    return bool(config.get("tie_word_embeddings"))


def _head_bytes(model: BenchModel) -> int:
    config = json.loads((model.folder / "config.json").read_text())
    return int(config["hidden_size"]) * model.vocabulary * 4


def _size_bytes(model: BenchModel) -> int:
    return _held_bytes(model, [[0, model.layers]])


def _held_bytes(model: BenchModel, ranges: list[list[int]]) -> int:
    size = sum(sum(model.layer_bytes[start:stop]) for start, stop in ranges)
    held = {layer for start, stop in ranges for layer in range(start, stop)}
    # One copy serves a node that holds both ends.
    return size - _head_bytes(model) if _is_tied(model) and {0, model.layers - 1} <= held else size


def _memory(process: psutil.Process) -> dict[str, int]:
    info = process.memory_full_info()
    return {"rss": info.rss, "pss": getattr(info, "pss", info.rss), "uss": info.uss}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _encoded(model: BenchModel) -> list[int]:
    from p2pllm.engine.tokenizer import ModelTokenizer

    return list(ModelTokenizer.load(model.folder).encode(PROMPT))


@contextlib.asynccontextmanager
async def _alone(
    threads: int, model: BenchModel | None
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """A process with transformers, ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.transformers_process", str(threads)),
        *(() if model is None else (str(model.folder),)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _answer(process)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _ask(process: asyncio.subprocess.Process, content: Any) -> Any:
    assert process.stdin is not None
    process.stdin.write(json.dumps(content).encode() + b"\n")
    await process.stdin.drain()
    return await _answer(process)


async def _answer(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), ANSWER_TIMEOUT_S)
    except TimeoutError:
        line = b""
    if not line:
        raise SwarmError("the reference process ended or hangs; run it by hand to see why")
    return json.loads(line)
