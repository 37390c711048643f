"""A training run learns, stops, goes on and exports."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast as Tokenizer

from p2pllm.builtin import model_path
from p2pllm.builtin.architecture import Shape
from p2pllm.builtin.batches import summed_loss
from p2pllm.builtin.evaluate import (
    load_model,
)
from p2pllm.builtin.tokenizer import load_tokenizer
from p2pllm.builtin.train import (
    CHECKPOINT_NAME,
    Plan,
    Trainer,
    choose_device,
    draw_batches,
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
def tokenizer() -> Tokenizer:
    return load_tokenizer(model_path())


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


def test_a_device_can_be_named_or_left_to_choose() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
