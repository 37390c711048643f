from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.api.errors import RequestError
from p2pllm.api.schemas import ChatBody, CompletionBody, InviteBody, ModelBody, PlanBody, parse

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatBody:
    return parse(ChatBody, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def completion(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, json.dumps({"model": "m", "prompt": "p", **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"min_p": float("inf")}, "min_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
        ({"p2pllm": {"detail": True}}, "p2pllm.detail"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*MESSAGES, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.status == 400
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"functions": [{}]},
        {"function_call": {"name": "f"}},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["text", "audio"]},
        {"audio": {}},
        {"reasoning_effort": "low"},
        {"verbosity": "low"},
        {"web_search_options": {}},
    ],
)
def test_what_would_change_a_chat_and_is_not_implemented_is_refused(
    fields: dict[str, Any],
) -> None:
    with pytest.raises(RequestError, match="not supported") as caught:
        chat(**fields)
    assert caught.value.param == next(iter(fields))
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize(
    "fields", [{"echo": True}, {"best_of": 2}, {"suffix": "x"}, {"best_of": True}]
)
def test_what_would_change_a_completion_and_is_not_implemented_is_refused(
    fields: dict[str, Any],
) -> None:
    with pytest.raises(RequestError, match="not supported") as caught:
        completion(**fields)
    assert caught.value.param == next(iter(fields))


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    chat(
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        modalities=["text"],
        parallel_tool_calls=True,
        top_logprobs=0,
        stop=None,
        n=None,
        temperature=None,
        top_k=-1,
    )
    completion(echo=False, best_of=1, suffix="")


def test_an_answer_can_be_sent_back_as_a_message() -> None:
    answer = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert chat(messages=[*MESSAGES, answer]).messages[1].template_fields() == {
        "role": "assistant",
        "content": "x",
    }


def test_tool_calls_in_a_conversation_are_refused() -> None:
    with pytest.raises(RequestError, match="not supported"):
        chat(messages=[{"role": "assistant", "content": "x", "tool_calls": [{}]}])


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown field 'temprature'"):
        chat(temprature=1)


def test_options_that_need_others_are_refused_alone() -> None:
    with pytest.raises(RequestError, match="needs 'stream'"):
        chat(stream_options={"include_usage": True})
    with pytest.raises(RequestError, match="needs 'logprobs'"):
        chat(top_logprobs=1)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 10_000, b'{"model": "\\ud800"}', b"\x00"]
)
def test_what_is_no_json_is_told_so(data: bytes) -> None:
    with pytest.raises(RequestError, match="not JSON") as caught:
        parse(ChatBody, data)
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"x"'])
def test_json_of_another_kind_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse(ChatBody, data)
    assert caught.value.status == 400


texts = st.text("a1€\ud800", max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(sorted({*ChatBody.model_fields, *CompletionBody.model_fields}))


@given(st.dictionaries(names, json_values, max_size=6))
def test_whatever_is_sent_is_understood_or_refused(fields: dict[str, Any]) -> None:
    for model in (ChatBody, CompletionBody, PlanBody, ModelBody, InviteBody):
        try:
            parse(model, json.dumps({"model": "m", **fields}).encode())
        except RequestError as error:
            assert error.status == 400  # noqa: PT017 - any other exception is the failure
            json.dumps(error.body()).encode()


def test_the_newer_name_for_the_token_limit_wins() -> None:
    assert chat(max_tokens=3, max_completion_tokens=4).tokens_max == 4
    assert chat(max_tokens=3).tokens_max == 3
    assert chat().tokens_max is None


def test_log_probabilities_are_asked_for_in_two_ways() -> None:
    assert chat().alternatives is None
    assert chat(logprobs=True).alternatives == 0
    assert chat(logprobs=True, top_logprobs=5).alternatives == 5
    assert completion(logprobs=0).alternatives == 0
    assert completion().alternatives is None


def test_invites_have_defaults() -> None:
    assert parse(InviteBody, b"{}") == InviteBody(uses=1, ttl_s=86_400)
