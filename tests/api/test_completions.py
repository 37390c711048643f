from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.fakes import FakeGateway, face

ROUTE = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": "hi", **fields}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97], [98, 99]], [b"a", b"bc"]),
    ],
)
async def test_a_prompt_may_be_text_or_tokens_one_or_many(
    prompt: Any, prompts: list[bytes]
) -> None:
    async with face() as api:
        status, answer, _ = await api.post(ROUTE, body(prompt=prompt))
    assert status == 200
    assert sorted(bytes(request.prompt) for request in api.gateway.requests) == prompts
    assert [choice["text"] for choice in answer["choices"]] == ["Hello, world"] * len(prompts)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert answer["object"] == "text_completion"


async def test_choices_go_prompt_by_prompt() -> None:
    async with face() as api:
        _, answer, _ = await api.post(ROUTE, body(prompt=["a", "b"], n=2, seed=0))
    by_seed = {request.sampling.seed: request.prompt for request in api.gateway.requests}
    assert [bytes(by_seed[seed]) for seed in range(4)] == [b"a", b"a", b"b", b"b"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


async def test_log_probabilities_are_four_lists() -> None:
    async with face(FakeGateway(text="ab")) as api:
        _, answer, _ = await api.post(ROUTE, body(logprobs=2))
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5, "x": -1.5}, {"b": -0.5, "x": -1.5}],
        "text_offset": [0, 1],
    }


async def test_no_alternatives_still_name_the_chosen_token() -> None:
    async with face(FakeGateway(text="a")) as api:
        _, answer, _ = await api.post(ROUTE, body(logprobs=0))
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}]


async def test_a_stream_carries_text_and_ends_with_done() -> None:
    async with (
        face(FakeGateway(text="ab")) as api,
        api.client.post(api.url + ROUTE, json=body(stream=True)) as answer,
    ):
        lines = (await answer.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_tokens_are_clamped_to_the_room_left() -> None:
    async with face(FakeGateway(context=10)) as api:
        status, _, _ = await api.post(ROUTE, body(prompt="x" * 7, max_tokens=1_000))
        assert status == 200
        await api.post(ROUTE, body(prompt="x" * 9))
    assert [request.tokens_max for request in api.gateway.requests] == [3, 1]


async def test_tokens_default_to_a_bounded_rest_of_the_context() -> None:
    async with face(FakeGateway(context=100_000)) as api:
        await api.post(ROUTE, body())
    assert api.gateway.requests[0].tokens_max == 2_048


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("x" * 10, "context_length_exceeded"),
        ("", "empty_prompt"),
        ([], "invalid_value"),
        ([[]], "empty_prompt"),
        ([257], "invalid_value"),
        ([-1], "invalid_value"),
        ([True], "invalid_value"),
        ([97, "a"], "invalid_value"),
        (["a", 97], "invalid_value"),
        ({"text": "a"}, "invalid_value"),
        (["a"] * 17, "invalid_value"),
    ],
)
async def test_a_prompt_that_cannot_be_served_is_refused(prompt: Any, code: str) -> None:
    async with face(FakeGateway(context=10)) as api:
        status, answer, _ = await api.post(ROUTE, body(prompt=prompt))
    assert (status, answer["error"]["code"]) == (400, code)
    assert answer["error"]["param"] == "prompt"
    assert api.gateway.requests == []


async def test_more_choices_than_ever_run_at_a_time_are_refused() -> None:
    async with face() as api:
        status, answer, _ = await api.post(ROUTE, body(prompt=["a"] * 16, n=16))
    assert (status, answer["error"]["param"]) == (400, "n")


async def test_details_need_a_single_choice() -> None:
    async with face() as api:
        status, answer, _ = await api.post(ROUTE, body(n=2, p2pllm={"details": True}))
    assert (status, answer["error"]["param"]) == (400, "p2pllm.details")
