"""Nodes die, leave, freeze and come back in the middle of sentences; the sentences go on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from p2pllm.app.state import load_state
from p2pllm.domain.errors import SwarmError
from tests.engine.tiny_models import make_tiny_model
from tests.processes.cluster import (
    Generated,
    Swarm,
    alive,
    complete,
    is_ready,
    sessions,
    swarm,
    wait_for_status,
)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]

MODEL = "long"
LAYERS = 12
PROMPT = "The swarm tells"
COUNT = 200
OPTIONS: dict[str, Any] = {"max_tokens": COUNT, "logit_bias": {"2": -100}}
"""Without an end-of-sequence token the length is known."""

STAGES = ("one", "two", "three")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncGenerator[Swarm, None]:
    """A gateway that holds nothing, and three stages of which any two hold everything."""
    model = make_tiny_model(
        "llama", folder / "models" / MODEL, num_hidden_layers=LAYERS, max_position_embeddings=1024
    )
    stage = ("--max-layers", "8")
    async with swarm(
        folder,
        gateway=("--memory", "1KiB", "--model", str(model)),
        one=stage,
        two=stage,
        three=stage,
    ) as made:
        await whole_again(made)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(running: Swarm) -> Generated:
    result = await complete(running.clients["gateway"], MODEL, PROMPT, **OPTIONS)
    assert len(result.token_ids) == COUNT
    assert len(set(result.token_ids)) > 10
    return result


async def whole_again(made: Swarm) -> dict[str, Any]:
    """Everybody is alive and no layer moves."""
    return await wait_for_status(
        made.clients["gateway"],
        lambda status: (
            alive(status) == {"gateway", *STAGES}
            and is_ready(status, MODEL)
            and all(
                holding["state"] == "ready"
                for member in status["members"]
                if member["state"] == "alive"
                for holding in member["holdings"]
            )
        ),
        timeout_s=60,
    )


def incarnation(made: Swarm, name: str) -> int:
    """The one the node runs under; on disk before the node says anything."""
    return load_state(made.nodes[name].data_dir)[0].incarnation


async def stage_on_path(made: Swarm, so_far: Generated) -> str:
    """The stage that draws the tokens."""
    status = await made.clients["gateway"].status()
    return made.name_of(status, so_far.paths[-1][-1][0])


async def disturbed(made: Swarm, number: signal.Signals) -> tuple[str, Generated]:
    """A generation whose last stage gets a signal in the middle; and which stage it was."""
    victims: list[str] = []

    async def disturb(so_far: Generated) -> None:
        victims.append(await stage_on_path(made, so_far))
        made.nodes[victims[0]].signal(number)

    gateway = made.clients["gateway"]
    result = await complete(gateway, MODEL, PROMPT, after=(5, disturb), **OPTIONS)
    return victims[0], result


def names_of(made: Swarm, status: dict[str, Any], result: Generated) -> set[str]:
    return {made.name_of(status, node) for node, _ in result.paths[-1]}


async def test_a_killed_stage_costs_no_token_and_is_replaced_and_comes_back(
    running: Swarm, undisturbed: Generated
) -> None:
    gateway = running.clients["gateway"]
    status = await whole_again(running)
    victim, result = await disturbed(running, signal.SIGKILL)
    assert result.token_ids == undisturbed.token_ids
    assert result.text == undisturbed.text
    assert result.details["attempts"] >= 2
    assert victim not in names_of(running, status, result)

    await running.nodes[victim].kill()
    status = await wait_for_status(
        gateway, lambda status: victim not in alive(status) and is_ready(status, MODEL)
    )
    again = await complete(gateway, MODEL, PROMPT, **OPTIONS)
    assert again.token_ids == undisturbed.token_ids
    assert again.details["attempts"] == 1

    # Its folder is all it needs: no invite, and a new life that outranks the death of the old one.
    before = incarnation(running, victim)
    await running.up(victim, "--max-layers", "8")
    assert incarnation(running, victim) > before
    await whole_again(running)
    assert sum(member["name"] == victim for member in status["members"]) == 1


async def test_a_stage_that_leaves_costs_no_token(running: Swarm, undisturbed: Generated) -> None:
    await whole_again(running)
    victim, result = await disturbed(running, signal.SIGTERM)
    assert result.token_ids == undisturbed.token_ids
    assert result.text == undisturbed.text
    assert await running.nodes[victim].stop() == 0
    await wait_for_status(running.clients["gateway"], lambda status: victim not in alive(status))
    await running.up(victim, "--max-layers", "8")


async def test_a_frozen_stage_costs_no_token_and_is_taken_back_when_it_thaws(
    running: Swarm, undisturbed: Generated
) -> None:
    status = await whole_again(running)
    victim, result = await disturbed(running, signal.SIGSTOP)
    try:
        assert result.token_ids == undisturbed.token_ids
        assert result.text == undisturbed.text
        assert victim not in names_of(running, status, result)
        await wait_for_status(
            running.clients["gateway"], lambda status: victim not in alive(status)
        )
    finally:
        running.nodes[victim].signal(signal.SIGCONT)
    await whole_again(running)
    await wait_for_status(running.clients["gateway"], lambda status: sessions(status) == 0)


async def test_without_a_path_the_stream_ends_with_an_error_that_names_the_layers(
    running: Swarm, undisturbed: Generated
) -> None:
    await whole_again(running)
    victims = STAGES[:2]

    async def kill_both(so_far: Generated) -> None:
        await asyncio.gather(*(running.nodes[name].kill() for name in victims))

    so_far = Generated()
    with pytest.raises(SwarmError, match=r"layers? \d+.*long") as caught:
        await complete(
            running.clients["gateway"],
            MODEL,
            PROMPT,
            after=(5, kill_both),
            into=so_far,
            **OPTIONS,
        )
    assert caught.value.code == "layers_missing"
    # What had come stands, and is the beginning of the sentence.
    assert undisturbed.text.startswith("".join(so_far.pieces))
    assert len(so_far.pieces) < COUNT


async def test_a_generation_that_waits_goes_on_when_the_layers_come_back(
    running: Swarm, undisturbed: Generated
) -> None:
    client = running.clients["gateway"]
    waiting = asyncio.ensure_future(complete(client, MODEL, PROMPT, **OPTIONS))
    for name in STAGES[:2]:
        await running.up(name, "--max-layers", "8")
    assert (await waiting).token_ids == undisturbed.token_ids


async def test_a_swarm_that_was_all_off_remembers_what_it_served(
    running: Swarm, undisturbed: Generated
) -> None:
    status = await whole_again(running)
    ports = {
        member["name"]: member["addresses"][0].rpartition(":")[2] for member in status["members"]
    }
    codes = await asyncio.gather(*(node.stop() for node in running.nodes.values()))
    assert codes == [0, 0, 0, 0]

    options = {"gateway": ("--memory", "1KiB"), **dict.fromkeys(STAGES, ("--max-layers", "8"))}
    async with asyncio.TaskGroup() as tasks:
        for name, more in options.items():
            listen = ("--listen", f"127.0.0.1:{ports[name]}")
            tasks.create_task(running.up(name, *listen, *more))
    await whole_again(running)
    result = await complete(running.clients["gateway"], MODEL, PROMPT, **OPTIONS)
    assert result.token_ids == undisturbed.token_ids
