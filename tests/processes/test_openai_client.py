"""The official OpenAI client works with a swarm as it does with OpenAI."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.engine.tiny_models import make_tiny_model
from tests.processes.cluster import Swarm, is_ready, swarm, wait_for_status

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
]

MODEL = "talker"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a swarm?"},
]
NO_END = {"2": -100}
"""Forbids the end-of-sequence token, so that lengths are known."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncGenerator[Swarm, None]:
    model = make_tiny_model("qwen3", folder / "models" / MODEL)
    async with swarm(
        folder,
        stage=("--max-layers", "4", "--model", str(model)),
        gateway=("--max-layers", "4"),
    ) as made:
        await wait_for_status(made.clients["gateway"], lambda status: is_ready(status, MODEL))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(running: Swarm) -> AsyncGenerator[AsyncOpenAI, None]:
    address = running.clients["gateway"].address
    async with AsyncOpenAI(
        base_url=f"http://{address}/v1", api_key="none is needed", max_retries=0
    ) as made:
        yield made


async def test_models_are_listed_and_looked_up(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "p2pllm"


async def test_a_chat_streamed_and_whole_is_the_same(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=12, logit_bias=NO_END
    )
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0,
        max_tokens=12,
        logit_bias=NO_END,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content == text
    assert text
    assert whole.choices[0].finish_reason == "length"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert chunks[-1].usage == whole.usage


async def test_a_completion_streamed_and_whole_is_the_same(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(
        model=MODEL, prompt="Swarms", temperature=0, max_tokens=12, logit_bias=NO_END
    )
    stream = await client.completions.create(
        model=MODEL, prompt="Swarms", temperature=0, max_tokens=12, logit_bias=NO_END, stream=True
    )
    pieces = [choice.text async for chunk in stream for choice in chunk.choices]
    assert whole.choices[0].text == "".join(pieces)
    # Special tokens have no text.
    assert 3 <= len([piece for piece in pieces if piece]) <= 12


async def test_n_choices_differ_and_a_seed_gives_them_again(client: AsyncOpenAI) -> None:
    async def ask(seed: int) -> list[str]:
        answer = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, n=2, seed=seed, max_tokens=16, temperature=1.5
        )
        assert [choice.index for choice in answer.choices] == [0, 1]
        return [choice.message.content or "" for choice in answer.choices]

    first = await ask(5)
    assert len(set(first)) == 2
    assert await ask(5) == first
    assert await ask(6) != first


async def test_logprobs_are_those_of_the_likeliest_tokens(client: AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0,
        max_tokens=4,
        logit_bias=NO_END,
        logprobs=True,
        top_logprobs=3,
    )
    assert chat.choices[0].logprobs is not None
    items = chat.choices[0].logprobs.content or []
    assert len(items) == 4
    for item in items:
        assert item.logprob < 0
        likeliest = [candidate.logprob for candidate in item.top_logprobs]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
    plain = await client.completions.create(
        model=MODEL, prompt="Swarms", temperature=0, max_tokens=4, logprobs=2, logit_bias=NO_END
    )
    assert plain.choices[0].logprobs is not None
    tokens = plain.choices[0].logprobs.tokens or []
    assert "".join(tokens) == plain.choices[0].text


async def test_a_stop_string_ends_the_text_before_it(client: AsyncOpenAI) -> None:
    async def ask(stop: str | None) -> tuple[str, str | None]:
        answer = await client.completions.create(
            model=MODEL,
            prompt="Swarms",
            temperature=0,
            max_tokens=16,
            stop=stop,
            logit_bias=NO_END,
        )
        return answer.choices[0].text, answer.choices[0].finish_reason

    text, _ = await ask(None)
    stop = text[6:8]
    assert await ask(stop) == (text[: text.index(stop)], "stop")


async def test_errors_are_the_clients_own(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody") as missing:
        await client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model=MODEL, prompt="x" * 200)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        await client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )
    assert tools.value.code == "unsupported_parameter"
