import json
import random
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

from p2pllm.builtin import model_path
from p2pllm.builtin.architecture import Shape
from p2pllm.builtin.evaluate import (
    NEW_TOKENS_MAX,
    answer,
    complaints,
    complete,
    draw_request,
    held_out_perplexity,
    load_model,
)
from p2pllm.builtin.tokenizer import BEGIN, load_tokenizer
from p2pllm.builtin.train import (
    CHECKPOINT_NAME,
    Plan,
)

CPU = torch.device("cpu")
TINY = Plan(
    seed=3,
    steps=8,
    shallow_layers=1,
    growth_step=3,
    cycle_starts=(0, 3),
    cycle_peaks=(1.0, 0.5),
    cycle_lows=(0.1, 0.0),
    tokens_per_step=400,
    warmup_steps=1,
    shape=Shape(layers=2, hidden=32, feed_forward=48, heads=2, key_value_heads=1),
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return load_model(model_path())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(model_path())


def test_importing_the_package_imports_no_torch() -> None:
    command = "import sys, p2pllm.builtin as b; b.model_path(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_the_folder_shipped_is_small_and_complete() -> None:
    weights = model_path() / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    names = {path.name for path in model_path().iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert not any(CHECKPOINT_NAME in name for name in names)


def test_it_is_a_llama_of_at_least_twelve_layers_with_grouped_queries(
    model: LlamaForCausalLM,
) -> None:
    config = json.loads((model_path() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] >= 12
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["max_position_embeddings"] == 512
    assert len(model.model.layers) == config["num_hidden_layers"]


def test_the_generic_loaders_load_it_and_agree_on_the_end_token() -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model_path(), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(model_path(), local_files_only=True)
    assert loaded.config.eos_token_id == tokenizer.eos_token_id
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert loaded.config.vocab_size == len(tokenizer)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    ids = loaded.generate(**inputs, do_sample=False)
    assert ids[0, -1] == tokenizer.eos_token_id


def test_its_perplexity_on_held_out_stories_is_low(
    model: LlamaForCausalLM, tokenizer: Tokenizer
) -> None:
    assert held_out_perplexity(model, tokenizer, stories=32) < 1.6


def test_it_stops_by_itself_on_every_request(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    source = random.Random("test requests")
    for number in range(4):
        request = draw_request(source)
        for temperature in (0.0, 0.8):
            said = answer(model, tokenizer, request.text, temperature=temperature, seed=number)
            assert said.has_stopped, request.text
            assert said.tokens < NEW_TOKENS_MAX


@pytest.mark.parametrize(
    ("request_text", "wanted"),
    [
        ("Tell me a story about a brave fox.", ("fox",)),
        ("Write a story about Mia and a lost kite.", ("Mia", "kite")),
        ("Tell me a story about a dragon and an owl.", ("dragon", "owl")),
    ],
)
def test_it_honours_what_a_request_names(
    model: LlamaForCausalLM, tokenizer: Tokenizer, request_text: str, wanted: tuple[str, ...]
) -> None:
    assert complaints(answer(model, tokenizer, request_text).text, wanted) == []


@pytest.mark.parametrize("said", ["Hello", "Who are you?", "What is 2+2?"])
def test_it_answers_what_is_no_request_in_a_short_sentence(
    model: LlamaForCausalLM, tokenizer: Tokenizer, said: str
) -> None:
    answered = answer(model, tokenizer, said)
    assert answered.has_stopped
    assert 1 <= answered.tokens < 40
    assert answered.text.endswith((".", "!", "?"))


def test_it_completes_a_plain_opening(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    opening = "Once upon a time"
    said = complete(model, tokenizer, BEGIN + opening)
    assert said.has_stopped
    assert complaints(opening + said.text) == []


def test_one_sampling_seed_gives_one_answer(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    said = [
        answer(model, tokenizer, "Tell me a story.", temperature=0.8, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1]
    assert said[0] != said[2]
