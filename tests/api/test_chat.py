from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from p2pllm.domain.errors import (
    ContextLengthError,
    DeadlineExceededError,
    NoPathError,
    OverloadedError,
    P2PLLMError,
)
from p2pllm.domain.generation import FinishReason
from tests.api.fakes import END, A, B, ByteTokenizer, C, Face, FakeGateway, face

ROUTE = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **fields}


async def stream(face: Face, **fields: Any) -> list[Any]:
    """The events of a streamed answer; the end mark as text."""
    async with face.client.post(face.url + ROUTE, json=body(stream=True, **fields)) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        events = (await answer.text()).split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    data = [event.removeprefix("data: ") for event in events]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


async def test_a_conversation_is_answered() -> None:
    async with face() as api:
        status, answer, _ = await api.post(ROUTE, body())
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 13, "total_tokens": 18}
    assert "p2pllm" not in answer
    assert bytes(api.gateway.requests[0].prompt) == b"u:hi|"
    assert api.gateway.requests[0].stop_tokens == (END,)


async def test_defaults_are_openais_and_the_seed_is_drawn() -> None:
    async with face() as api:
        for _ in range(2):
            await api.post(ROUTE, body())
    one, two = api.gateway.requests
    assert (one.sampling.temperature, one.sampling.top_p, one.sampling.top_k) == (1.0, 1.0, 0)
    assert one.sampling.logprobs is None
    assert one.sampling.seed != two.sampling.seed
    assert one.session != two.session


async def test_every_sampling_field_reaches_the_gateway() -> None:
    async with face() as api:
        await api.post(
            ROUTE,
            body(
                temperature=0,
                top_p=0.5,
                top_k=7,
                min_p=0.25,
                seed=42,
                presence_penalty=1,
                frequency_penalty=-1.5,
                repetition_penalty=1.25,
                logit_bias={"65": -100, "66": 2.5},
                logprobs=True,
                top_logprobs=2,
                max_completion_tokens=9,
            ),
        )
    request = api.gateway.requests[0]
    sampling = request.sampling
    assert request.tokens_max == 9
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 7)
    assert (sampling.min_p, sampling.seed, sampling.logprobs) == (0.25, 42, 2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1.5)
    assert sampling.repetition_penalty == 1.25
    assert sampling.logit_bias == ((65, -100), (66, 2.5))


async def test_a_stream_begins_with_the_role_and_ends_with_done() -> None:
    async with face(FakeGateway(text="h€")) as api:
        events = await stream(api)
    assert events.pop() == "[DONE]"
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert [delta["content"] for delta in deltas[1:-1]] == ["h", "€"]
    assert deltas[-1] == {}
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["stop"]
    assert all("usage" not in event for event in events)


async def test_usage_comes_last_where_it_is_asked_for() -> None:
    async with face(FakeGateway(text="ab")) as api:
        events = await stream(api, stream_options={"include_usage": True})
    assert events.pop() == "[DONE]"
    last = events.pop()
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert all(event["usage"] is None for event in events)


async def test_the_answer_ends_at_the_token_limit() -> None:
    async with face() as api:
        _, answer, _ = await api.post(ROUTE, body(max_tokens=3))
    assert answer["choices"][0]["message"]["content"] == "Hel"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


async def test_a_stop_string_ends_the_text_and_closes_the_generator() -> None:
    async with face(FakeGateway(text="one two three")) as api:
        _, answer, _ = await api.post(ROUTE, body(stop=["o t", "never"]))
        _, said = await api.gateway.closed.get()
    assert answer["choices"][0]["message"]["content"] == "one tw"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert said == len("one two t")


async def test_a_stop_string_is_not_shown_in_a_stream() -> None:
    async with face(FakeGateway(text="one two three")) as api:
        events = await stream(api, stop="two")
    texts = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(texts) == "one "


async def test_an_end_token_that_is_text_is_not_shown() -> None:
    class TextEnd(ByteTokenizer):
        stop_tokens = (ord("."),)

    gateway = FakeGateway(text="ab.", finish=FinishReason.LENGTH, tokenizer_of_models=TextEnd())
    async with face(gateway) as api:
        _, answer, _ = await api.post(ROUTE, body(p2pllm={"details": True}))
    assert answer["choices"][0]["message"]["content"] == "ab"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["p2pllm"]["token_ids"] == [97, 98, ord(".")]


async def test_several_choices_differ_in_seed_and_share_the_prompt() -> None:
    async with face(FakeGateway(text="abc")) as api:
        _, answer, _ = await api.post(ROUTE, body(n=3, seed=10))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert sorted(request.sampling.seed for request in api.gateway.requests) == [10, 11, 12]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}


async def test_several_choices_are_streamed_side_by_side() -> None:
    async with face(FakeGateway(text="abc")) as api:
        events = await stream(api, n=2)
    texts = ["", ""]
    for event in events[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["abc", "abc"]


async def test_log_probabilities_name_token_bytes_and_candidates() -> None:
    async with face(FakeGateway(text="h€")) as api:
        _, answer, _ = await api.post(ROUTE, body(logprobs=True, top_logprobs=2))
    content = answer["choices"][0]["logprobs"]["content"]
    assert content[0] == {
        "token": "h",
        "logprob": -0.5,
        "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -0.5, "bytes": [104]},
            {"token": "x", "logprob": -1.5, "bytes": [120]},
        ],
    }
    assert len(content) == 4
    assert content[1]["bytes"] is None  # a third of a character


async def test_streamed_log_probabilities_are_the_same_as_whole_ones() -> None:
    async with face(FakeGateway(text="a€bcd")) as api:
        fields = {"logprobs": True, "stop": "cd"}
        _, answer, _ = await api.post(ROUTE, body(**fields))
        events = await stream(api, **fields)
    streamed = [
        token
        for event in events[:-1]
        if event["choices"][0]["logprobs"]
        for token in event["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == answer["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in streamed[-1:]] == ["b"]


async def test_details_tell_tokens_path_and_timings() -> None:
    async with face(FakeGateway(text="ab", reroute_after=1)) as api:
        _, answer, _ = await api.post(ROUTE, body(p2pllm={"details": True}))
    details = answer["p2pllm"]
    assert details["token_ids"] == [97, 98, END]
    assert details["attempts"] == 2
    assert details["path"] == [{"node": A, "layers": [0, 2]}, {"node": C, "layers": [2, 4]}]
    assert set(details["timings"]) == {"first_token_s", "total_s", "tokens_per_s"}
    assert 0 <= details["timings"]["first_token_s"] <= details["timings"]["total_s"]


@pytest.mark.parametrize("usage", [False, True])
async def test_streamed_details_tell_a_new_path_when_it_is_taken(usage: bool) -> None:
    async with face(FakeGateway(text="ab", reroute_after=1)) as api:
        events = await stream(
            api, p2pllm={"details": True}, stream_options={"include_usage": usage}
        )
    order = [
        event["p2pllm"].get("attempt", "end")
        if "p2pllm" in event
        else event["choices"][0]["delta"].get("content", "finish")
        for event in events[:-1]
    ]
    assert order == [1, "", "a", 2, "b", *(["finish"] if usage else []), "end"]
    assert events[0]["p2pllm"]["path"][1] == {"node": B, "layers": [2, 4]}
    assert events[-2]["p2pllm"]["token_ids"] == [97, 98, END]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoPathError("layers 2-3 of 'fake' have no holder"), 503, "layers_missing"),
        (OverloadedError("no room", retry_after_s=2.5), 429, "overloaded"),
        (DeadlineExceededError("too late"), 504, "deadline_exceeded"),
        (ContextLengthError("too long"), 400, "context_length_exceeded"),
        (P2PLLMError("odd"), 500, "error"),
        (ValueError("a secret of ours"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_before_the_first_token_has_its_status(
    error: Exception, status: int, code: str, streamed: bool
) -> None:
    async with face(FakeGateway(error=error)) as api:
        got, answer, headers = await api.post(ROUTE, body(stream=streamed))
    assert (got, answer["error"]["code"]) == (status, code)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert headers.get("Retry-After") == ("3" if status == 429 else None)
    assert "secret" not in answer["error"]["message"]


@pytest.mark.parametrize("count", [1, 2])
async def test_an_error_in_mid_stream_is_an_event_and_no_end_mark_follows(count: int) -> None:
    async with face(FakeGateway(error=NoPathError("layer 3 is lost"), error_after=2)) as api:
        events = await stream(api, n=count)
    assert events[-1] == {
        "error": {
            "message": "layer 3 is lost",
            "type": "server_error",
            "param": None,
            "code": "layers_missing",
        }
    }
    assert "[DONE]" not in events
    assert len(events) > 2


async def test_an_error_of_one_choice_closes_the_others() -> None:
    async with face(FakeGateway(error=NoPathError("lost"), error_after=2)) as api:
        status, _, _ = await api.post(ROUTE, body(n=3))
        for _ in range(3):
            await api.gateway.closed.get()
    assert status == 503


async def test_a_model_without_a_template_cannot_chat() -> None:
    class Plain(ByteTokenizer):
        has_chat_template = False

    async with face(FakeGateway(tokenizer_of_models=Plain())) as api:
        status, answer, _ = await api.post(ROUTE, body())
    assert (status, answer["error"]["code"]) == (400, "no_chat_template")


async def test_text_parts_are_joined_and_developers_speak_as_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    async with face() as api:
        await api.post(ROUTE, body(messages=messages))
    assert bytes(api.gateway.requests[0].prompt) == b"s:x|u:a\nb|"


async def test_what_a_model_writes_cannot_break_out_of_its_event() -> None:
    text = 'x\n\ndata: [DONE]\n\r\n"\N{LINE SEPARATOR}'
    async with face(FakeGateway(text=text)) as api:
        events = await stream(api)
    assert events.count("[DONE]") == 1
    texts = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(texts) == text


async def test_a_long_conversation_is_tokenised_off_the_event_loop() -> None:
    threads: list[str] = []

    class Watching(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            threads.append(threading.current_thread().name)
            return super().encode(text)

    async with face(FakeGateway(context=100_000, tokenizer_of_models=Watching())) as api:
        await api.post(ROUTE, body())
        await api.post(ROUTE, body(messages=[{"role": "user", "content": "x" * 20_000}]))
    assert threads[0] == "MainThread"
    assert threads[1].startswith("p2pllm-api")


async def test_a_bug_in_mid_stream_is_told_without_its_details() -> None:
    async with face(FakeGateway(error=ValueError("a secret of ours"), error_after=2)) as api:
        events = await stream(api)
        text = api.metrics.render()
    assert events[-1]["error"]["code"] == "internal_error"
    assert "secret" not in str(events)
    assert b"p2pllm_http_stream_errors_total 1.0" in text


async def test_a_bias_for_a_token_the_model_lacks_is_refused() -> None:
    async with face() as api:
        status, answer, _ = await api.post(ROUTE, body(logit_bias={"257": 1}))
    assert (status, answer["error"]["param"]) == (400, "logit_bias")
