"""What an untrained model does, and a grown one."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast as Tokenizer

from p2pllm.builtin import model_path
from p2pllm.builtin.architecture import Shape, grown
from p2pllm.builtin.tokenizer import load_tokenizer
from p2pllm.builtin.train import (
    Plan,
    Trainer,
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
