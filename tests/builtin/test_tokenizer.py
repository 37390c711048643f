import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from p2pllm.builtin import model_path
from p2pllm.builtin.chat import conversation
from p2pllm.builtin.grammar import story_text
from p2pllm.builtin.tokenizer import (
    ASSISTANT,
    BEGIN,
    END,
    SPECIAL_TOKENS,
    VOCABULARY_SIZE,
    encode_conversation,
    load_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(model_path())


SHIPPED = load_tokenizer(model_path())


@given(
    text=st.text().filter(lambda text: not any(special in text for special in SPECIAL_TOKENS)),
)
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = SHIPPED(text)["input_ids"]
    assert SHIPPED.decode(ids, skip_special_tokens=True) == text


def test_it_loads_by_folder_alone_without_remote_code(tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = AutoTokenizer.from_pretrained(
        model_path(), local_files_only=True, trust_remote_code=False
    )
    text = "Once upon a time, a fox met Zorblax — ünïcode 🦊."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert len(loaded) == VOCABULARY_SIZE


def test_plain_text_starts_with_the_begin_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("Once upon a time")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0] == BEGIN
    assert len(ids) == 5


def test_nearly_every_word_of_a_story_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    source = random.Random("words")
    stories = [story_text(source) for _ in range(50)]
    tokens = sum(len(tokenizer(story)["input_ids"]) for story in stories)
    assert tokens < 1.3 * sum(len(story.split()) for story in stories)


def test_training_again_with_the_seed_shipped_gives_the_tokenizer_shipped(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trained = train_tokenizer(seed=1)
    assert trained.get_vocab() == tokenizer.get_vocab()
    trained.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def render(tokenizer: PreTrainedTokenizerFast, messages: list, *, prompt: bool = True) -> str:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    assert isinstance(text, str)
    return text


def test_the_chat_template_renders_every_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": " A story, please! "},
    ]
    turns = "<|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>Hello!<|end|>"
    assert render(tokenizer, messages) == (
        f"{BEGIN}{turns}<|user|>A story, please!<|end|>{ASSISTANT}"
    )
    assert render(tokenizer, messages, prompt=False).endswith(END)


def test_the_chat_template_copes_with_parts_and_unknown_roles(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url"}]},
    ]
    assert render(tokenizer, messages) == (
        f"{BEGIN}<|system|>Be kind.{END}<|user|>42{END}<|assistant|>{END}<|user|>Hi{END}{ASSISTANT}"
    )


def test_a_chat_is_encoded_for_training_as_the_template_renders_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    source = random.Random("alike")
    for _ in range(50):
        messages = conversation(source)
        if messages[0]["role"]:
            ids, _ = encode_conversation(tokenizer, messages)
            rendered = tokenizer(
                render(tokenizer, messages, prompt=False), add_special_tokens=False
            )
            assert ids == rendered["input_ids"]


def test_only_what_the_storyteller_says_is_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, is_said = encode_conversation(
        tokenizer,
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello, friend!"}],
    )
    said = [token for token, each in zip(ids, is_said, strict=True) if each]
    assert tokenizer.decode(said) == "Hello, friend!" + END
