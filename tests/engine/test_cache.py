"""Caches with holes."""

from __future__ import annotations

import torch
from transformers import Gemma2Config, LlamaConfig

from p2pllm.engine.cache import KV_BLOCK_TOKENS, GrowingLayer, StageCache

LLAMA = LlamaConfig(num_hidden_layers=6, num_attention_heads=2, hidden_size=8)
GEMMA = Gemma2Config(
    num_hidden_layers=4,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
)


def states(count: int, start: int = 0) -> torch.Tensor:
    numbers = torch.arange(start, start + count, dtype=torch.float32)
    return numbers.view(1, 1, count, 1).expand(1, 2, count, 4)


def test_what_was_cached_comes_back_in_order_across_blocks() -> None:
    layer = GrowingLayer()
    total = 0
    for count in (1, 3, KV_BLOCK_TOKENS, 2 * KV_BLOCK_TOKENS + 5, 1):
        keys, values = layer.update(states(count, total), -states(count, total))
        total += count
        assert keys.shape == values.shape == (1, 2, total, 4)
    assert torch.equal(keys, states(total))
    assert torch.equal(values, -states(total))
    assert layer.get_seq_length() == total


def test_a_decode_step_does_not_move_the_past() -> None:
    layer = GrowingLayer()
    before, _ = layer.update(states(5), states(5))
    after, _ = layer.update(states(1, 5), states(1, 5))
    assert before.data_ptr() == after.data_ptr()


def test_length_is_asked_of_the_first_running_layer() -> None:
    cache = StageCache(LLAMA)
    cache.run(4, 6)
    assert cache.get_seq_length() == 0
    for layer in (4, 5):
        cache.update(states(3), states(3), layer)
    assert cache.get_seq_length() == 3
    assert cache.get_mask_sizes(2, 0) == (5, 0)
    assert [cache.length(layer) for layer in range(6)] == [0, 0, 0, 0, 3, 3]
    cache.run(0, 2)
    assert cache.get_seq_length() == 0


def test_masks_are_made_for_running_layers_of_the_same_kind() -> None:
    cache = StageCache(GEMMA)
    cache.run(2, 4)
    for layer in (2, 3):
        cache.update(states(10), states(10), layer)
    assert cache.get_mask_sizes(1, 0) == (4, 7)  # a window of 4 behind position 10
    assert cache.get_mask_sizes(1, 1) == (11, 0)


def test_a_window_keeps_no_more_than_it_needs() -> None:
    cache = StageCache(GEMMA)
    cache.run(0, 1)
    for position in range(50):
        cache.update(states(1, position), states(1, position), 0)
    assert cache.size_bytes() <= 2 * 2 * 5 * 4 * 4


def test_layers_that_never_ran_take_no_memory() -> None:
    cache = StageCache(LLAMA)
    assert cache.size_bytes() == 0
    cache.run(3, 4)
    cache.update(states(1), states(1), 3)
    assert cache.size_bytes() == 2 * KV_BLOCK_TOKENS * 2 * 4 * 4
