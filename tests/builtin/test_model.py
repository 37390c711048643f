import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

from p2pllm.builtin import model_path
from p2pllm.builtin.architecture import Shape, grown
from p2pllm.builtin.evaluate import (
    NEW_TOKENS_MAX,
    answer,
    complaints,
    complete,
    draw_request,
    held_out_perplexity,
    load_model,
)
from p2pllm.builtin.muon import Muon, orthogonalised
from p2pllm.builtin.tokenizer import BEGIN, load_tokenizer
from p2pllm.builtin.train import (
    CHECKPOINT_NAME,
    Plan,
    Trainer,
    choose_device,
    draw_batches,
    make_batches,
    summed_loss,
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


def test_a_few_steps_of_training_lower_the_loss(tokenizer: Tokenizer) -> None:
    trainer = Trainer(TINY, tokenizer, CPU)
    batches = draw_batches(TINY, TINY.steps, tokenizer)
    targets = sum(int((batch.targets >= 0).sum()) for batch in batches)

    def loss() -> float:
        with torch.inference_mode():
            return sum(float(summed_loss(trainer.model, batch)) for batch in batches) / targets

    before = loss()
    assert before == pytest.approx(math.log(len(tokenizer)), rel=0.2)
    for _ in range(3):
        trainer.step()
    assert loss() < before


def test_a_grown_model_computes_what_the_shallow_one_did(tokenizer: Tokenizer) -> None:
    shallow = Trainer(TINY, tokenizer, CPU).model
    deep = grown(shallow, 3)
    assert len(deep.model.layers) == 3
    ids = torch.tensor([[0, 3, 50, 60, 4]])
    torch.testing.assert_close(deep(input_ids=ids).logits, shallow(input_ids=ids).logits)
    with pytest.raises(ValueError, match="no multiple"):
        grown(deep, 4)


def test_an_untrained_model_repeats_what_it_attends_to(tokenizer: Tokenizer) -> None:
    attention = Trainer(TINY, tokenizer, CPU).model.model.layers[0].self_attn
    copied = attention.o_proj.weight @ attention.v_proj.weight.repeat(2, 1)
    assert torch.linalg.eigvalsh((copied + copied.T) / 2).min() > -1e-6


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = Trainer(TINY, tokenizer, CPU)
    expected = [whole.step() for _ in range(5)]
    # The model grows at the third step: a run is stopped before and another after it.
    for stop in (2, 4):
        stopped = Trainer(TINY, tokenizer, CPU)
        for _ in range(stop):
            stopped.step()
        stopped.save_checkpoint(tmp_path / CHECKPOINT_NAME)
        resumed = Trainer(TINY, tokenizer, CPU)
        resumed.load_checkpoint(tmp_path / CHECKPOINT_NAME)
        assert [resumed.step() for _ in range(stop, 5)] == expected[stop:]


def test_a_checkpoint_of_another_plan_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Trainer(TINY, tokenizer, CPU).save_checkpoint(tmp_path / CHECKPOINT_NAME)
    other = Trainer(replace(TINY, seed=4), tokenizer, CPU)
    with pytest.raises(ValueError, match="another plan"):
        other.load_checkpoint(tmp_path / CHECKPOINT_NAME)


def test_an_export_loads_as_a_model_with_its_tokenizer(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    trainer = Trainer(TINY, tokenizer, CPU)
    trainer.export(tmp_path)
    loaded = load_model(tmp_path)
    ids = torch.tensor([load_tokenizer(tmp_path)("Once upon a time")["input_ids"]])
    difference = loaded(input_ids=ids).logits - trainer.model(input_ids=ids).logits
    # bfloat16 keeps eight bits of every weight.
    assert difference.abs().max() < 0.1


def test_the_learning_rate_rises_and_falls_in_every_cycle() -> None:
    plan = replace(TINY, steps=100, cycle_starts=(0, 60), warmup_steps=10)
    factors = [plan.rate_factor(step) for step in range(plan.steps)]
    assert factors[0] == pytest.approx(0.1)
    for start, end in ((0, 60), (60, 100)):
        peak = factors.index(max(factors[start:end]), start)
        assert factors[start:peak] == sorted(factors[start:peak])
        assert factors[peak:end] == sorted(factors[peak:end], reverse=True)
    assert max(factors[60:]) <= 0.5
    assert 0 < factors[-1] < 0.05


def test_padding_is_neither_learned_nor_in_the_way() -> None:
    rows = [([1, 2, 3, 4], [False, False, True, True]), ([1, 5], [False, True])]
    (batch,) = make_batches(rows, rows_per_batch=4, padding=0)
    assert batch.inputs.tolist() == [[1, 0, 0], [1, 2, 3]]
    assert batch.targets.tolist() == [[5, -100, -100], [-100, 3, 4]]


def test_muon_steps_along_orthogonal_directions() -> None:
    matrices = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(1))
    singular_values = torch.linalg.svdvals(orthogonalised(matrices))
    assert singular_values.min() > 0.5
    assert singular_values.max() < 1.3
    torch.testing.assert_close(
        orthogonalised(matrices.mT), orthogonalised(matrices).mT, rtol=1e-4, atol=1e-4
    )


def test_muon_refuses_a_closure() -> None:
    optimizer = Muon([torch.nn.Parameter(torch.eye(2))])
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_a_device_can_be_named_or_left_to_choose() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
