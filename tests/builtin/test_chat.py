"""Conversations as they are written for training."""

import random

from hypothesis import given
from hypothesis import strategies as st

from p2pllm.builtin import cast
from p2pllm.builtin.chat import conversation, request_for, small_talk
from p2pllm.builtin.grammar import draw_story, tell

SEEDS = st.integers(min_value=0, max_value=2**64)


@given(seed=SEEDS)
def test_a_request_names_nothing_that_its_story_lacks(seed: int) -> None:
    source = random.Random(seed)
    story = draw_story(source)
    request = request_for(story, source)
    text = tell(story, source)
    for name in {*cast.HE_NAMES, *cast.SHE_NAMES} & set(request.rstrip(".?").split()):
        assert name in text, f"{request!r} -> {text!r}"
    assert "{" not in request


@given(seed=SEEDS)
def test_a_conversation_takes_turns_and_ends_with_the_storyteller(seed: int) -> None:
    messages = conversation(random.Random(seed))
    roles = [message["role"] for message in messages]
    if roles != [""]:
        if roles[0] == "system":
            roles = roles[1:]
        assert roles
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(message["content"] and "{" not in message["content"] for message in messages)


@given(seed=SEEDS)
def test_small_talk_is_answered_in_one_breath(seed: int) -> None:
    said, answered = small_talk(random.Random(seed))
    assert said
    assert len(answered.split()) < 20
