"""Text to ids and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pllm.domain.errors import ClientError, ModelRefusedError
from p2pllm.engine.tokenizer import ModelTokenizer
from tests.engine.tiny_models import make_tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_text_comes_back(folder: Path) -> None:
    tokenizer = ModelTokenizer.load(folder)
    tokens = tokenizer.encode("Hello, you there!")
    assert len(tokens) == 17
    assert tokenizer.decode(tokens) == "Hello, you there!"


def test_special_tokens_are_left_out_of_text_and_shown_in_logprobs(folder: Path) -> None:
    tokenizer = ModelTokenizer.load(folder)
    assert tokenizer.decode([1, *tokenizer.encode("a"), 2]) == "a"
    assert tokenizer.token_text(2) == "</s>"
    assert tokenizer.token_text(tokenizer.encode("a")[0]) == "a"


def test_a_conversation_ends_where_the_assistant_begins(folder: Path) -> None:
    tokenizer = ModelTokenizer.load(folder)
    assert tokenizer.has_chat_template
    tokens = tokenizer.encode_chat(
        [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    )
    assert tokenizer.decode(tokens) == "<s>be</><u>hi</><a>".replace("<s>", "")


def test_a_template_that_refuses_blames_the_caller_in_one_line(folder: Path) -> None:
    tokenizer = ModelTokenizer.load(folder)
    with pytest.raises(ClientError, match=r"refuses these messages: unknown role robot\."):
        tokenizer.encode_chat([{"role": "robot", "content": "x"}])
    with pytest.raises(ClientError):
        tokenizer.encode_chat([{"content": "x"}])


def test_without_a_template_chat_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    tokenizer = ModelTokenizer.load(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(ClientError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "x"}])


def test_stop_tokens_come_from_all_three_places(folder: Path) -> None:
    assert ModelTokenizer.load(folder).stop_tokens == (2,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 9}))
    assert ModelTokenizer.load(folder).stop_tokens == (7, 2, 9)


@pytest.mark.parametrize("text", ["", "[]", '{"eos_token_id": null}', '{"eos_token_id": "x"}'])
def test_broken_generation_settings_are_passed_over(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    assert ModelTokenizer.load(folder).stop_tokens == (2,)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="has no tokenizer"):
        ModelTokenizer.load(tmp_path)
