"""A swarm generates the very tokens that one process generates, wherever the layers are cut."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2pllm.builtin import model_path
from tests.engine.tiny_models import LAYERS, make_tiny_model
from tests.processes.cluster import (
    Generated,
    Swarm,
    alive,
    complete,
    is_ready,
    swarm,
    wait_for_status,
)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]

FAMILIES = ("llama", "qwen3", "gemma", "gpt2", "mixtral")
MODELS = (*FAMILIES, "builtin")
PROMPTS = {**dict.fromkeys(FAMILIES, "Where do the layers go?"), "builtin": "Once upon a time"}
COUNT = 24
GATEWAYS = ("first", "second", "third", "bystander")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Path]:
    made = {name: make_tiny_model(name, folder / "models" / name) for name in FAMILIES}
    return {**made, "builtin": model_path()}


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> dict[str, list[int]]:
    """What transformers generates in this process, greedily."""
    found: dict[str, list[int]] = {}
    for name, path in models.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        prompt = AutoTokenizer.from_pretrained(path)(PROMPTS[name], return_tensors="pt").input_ids
        generated = model.generate(prompt, max_new_tokens=COUNT, do_sample=False)
        found[name] = generated[0, prompt.shape[1] :].tolist()
        assert len(set(found[name])) > 3, "a model that repeats itself proves little"
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path, models: dict[str, Path]) -> AsyncGenerator[Swarm, None]:
    served = [*(models[name] for name in FAMILIES), "builtin"]
    # 30 layers of the tiny models and 12 of the built-in one. Any two nodes have room for all of
    # them, no node alone; the bystander has no memory for any.
    async with swarm(
        folder,
        first=("--max-layers", "26", *(f"--model={path}" for path in served)),
        second=("--max-layers", "21"),
        third=("--max-layers", "23"),
        bystander=("--memory", "1KiB"),
    ) as made:
        await wait_for_status(made.clients["first"], everything_is_ready)
        yield made


def everything_is_ready(status: dict[str, Any]) -> bool:
    """Whether all models have all layers, and nothing moves any more."""
    return all(is_ready(status, model) for model in MODELS) and all(
        holding["state"] == "ready"
        for member in status["members"]
        if member["state"] == "alive"
        for holding in member["holdings"]
    )


async def generate(made: Swarm, gateway: str, model: str) -> Generated:
    client = made.clients[gateway]
    await wait_for_status(client, lambda status: is_ready(status, model))
    return await complete(client, model, PROMPTS[model], max_tokens=COUNT)


@pytest.mark.parametrize("model", MODELS)
async def test_every_gateway_gives_the_tokens_of_a_single_process(
    model: str, running: Swarm, expected: dict[str, list[int]]
) -> None:
    for gateway in GATEWAYS:
        result = await generate(running, gateway, model)
        assert result.token_ids == expected[model], (gateway, result.paths)
        assert result.details["attempts"] == 1
        assert len(result.paths[-1]) >= 2, "no node has room for everything"


async def test_the_bystander_holds_nothing_and_some_layers_have_two_holders(
    running: Swarm,
) -> None:
    status = await running.clients["bystander"].status()
    held = {member["name"]: member["holdings"] for member in status["members"]}
    assert held["bystander"] == []
    layers = [
        (holding["model"], layer)
        for holdings in held.values()
        for holding in holdings
        for layer in range(*holding["layers"])
    ]
    assert len(set(layers)) == len(FAMILIES) * LAYERS + 12
    assert len(layers) > len(set(layers))


async def test_other_cuts_give_the_same_tokens(
    running: Swarm, expected: dict[str, list[int]]
) -> None:
    found = {model: await generate(running, "first", model) for model in MODELS}
    before = {model: result.cuts for model, result in found.items()}
    names = {
        member["id"]: member["name"]
        for member in (await running.clients["first"].status())["members"]
    }
    # Somebody whom a path goes through; no node holds everything, so there is one.
    on_paths = {names[node] for result in found.values() for node, _ in result.paths[-1]}
    victim = min(on_paths - {"first"})
    await running.nodes[victim].kill()
    await wait_for_status(
        running.clients["first"],
        lambda status: victim not in alive(status) and everything_is_ready(status),
    )
    after: dict[str, tuple[int, ...]] = {}
    for model in MODELS:
        result = await generate(running, "first", model)
        assert result.token_ids == expected[model], (model, result.paths)
        assert victim not in {names[node] for node, _ in result.paths[-1]}
        after[model] = result.cuts
    assert len({*before.values(), *after.values()}) >= 2, (before, after)
