"""The official client against the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from p2pllm.domain.errors import DeadlineExceededError, NoPathError, OverloadedError
from tests.api.fakes import FakeGateway, face

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def client(gateway: FakeGateway | None = None) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        face(gateway) as api,
        openai.AsyncOpenAI(base_url=api.url + "/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


async def test_models_are_listed_and_found() -> None:
    async with client() as api:
        assert [model.id async for model in api.models.list()] == ["fake", "owner/other"]
        assert (await api.models.retrieve("owner/other")).owned_by == "p2pllm"
        with pytest.raises(openai.NotFoundError):
            await api.models.retrieve("nope")


async def test_a_chat_is_answered_whole() -> None:
    async with client() as api:
        answer = await api.chat.completions.create(
            model="fake", messages=MESSAGES, n=2, logprobs=True, top_logprobs=1
        )
    assert [choice.message.content for choice in answer.choices] == ["Hello, world"] * 2
    assert answer.choices[1].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 26
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].top_logprobs[0].token == "H"


async def test_a_chat_is_streamed() -> None:
    async with client() as api:
        stream = await api.chat.completions.create(
            model="fake",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"p2pllm": {"details": True}, "top_k": 5},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello, world"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 18
    extra = chunks[-1].model_extra
    assert extra is not None
    assert len(extra["p2pllm"]["token_ids"]) == 13


async def test_the_clients_own_stream_helper_understands_the_answer() -> None:
    async with (
        client() as api,
        api.chat.completions.stream(model="fake", messages=MESSAGES) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello, world"


async def test_a_completion_is_answered_whole_and_streamed() -> None:
    async with client() as api:
        answer = await api.completions.create(
            model="fake", prompt=["a", "b"], n=2, logprobs=1, max_tokens=2
        )
        assert [choice.text for choice in answer.choices] == ["He"] * 4
        assert {choice.finish_reason for choice in answer.choices} == {"length"}
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.tokens == ["H", "e"]
        stream = await api.completions.create(model="fake", prompt="a", stream=True, stop=", ")
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NoPathError("lost"), openai.InternalServerError),
        (DeadlineExceededError("late"), openai.InternalServerError),
        (OverloadedError("full"), openai.RateLimitError),
    ],
)
async def test_errors_of_the_swarm_have_their_class(
    error: Exception, expected: type[openai.APIStatusError]
) -> None:
    async with client(FakeGateway(error=error)) as api:
        with pytest.raises(expected) as caught:
            await api.chat.completions.create(model="fake", messages=MESSAGES)
    assert str(error) in caught.value.message


async def test_errors_of_the_caller_have_their_class() -> None:
    async with client() as api:
        with pytest.raises(openai.NotFoundError):
            await api.chat.completions.create(model="nope", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as caught:
            await api.chat.completions.create(model="fake", messages=MESSAGES, temperature=9)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.BadRequestError) as caught:
            await api.completions.create(model="fake", prompt="x" * 64)
        assert caught.value.code == "context_length_exceeded"


async def test_an_error_in_mid_stream_is_raised() -> None:
    async with client(FakeGateway(error=NoPathError("lost"), error_after=2)) as api:
        stream = await api.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="lost"):
            async for _ in stream:
                pass
