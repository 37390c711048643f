"""The built-in model's shape: a Llama of many thin layers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from p2pllm.builtin.tokenizer import POSITIONS_MAX

_VALUE_SCALE = 1.5
_OUTPUT_SCALE = 0.15


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; the defaults are those of the model shipped."""

    layers: int = 12
    hidden: int = 128
    feed_forward: int = 256
    heads: int = 4
    # Fewer key/value heads than query heads: the built-in model exercises grouped-query attention.
    key_value_heads: int = 2


def new_model(
    shape: Shape, *, vocabulary: int, begin_token: int, end_token: int, seed: int
) -> LlamaForCausalLM:
    """Return an untrained model, the same for the same seed.

    It starts as one that copies: in every layer, the value and output projections undo each other,
    so that attending to a token makes that token likelier to come next (the embedding is tied).
    What is left to learn about copying a name is where to look. After "Mimetic Initialization of
    Self-Attention Layers" (Trockman and Kolter, 2023), https://arxiv.org/abs/2305.09828; here it
    halved the steps until lists of random tokens were copied.
    """
    configuration = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=POSITIONS_MAX,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=begin_token,
        eos_token_id=end_token,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(configuration)
    width = shape.hidden // shape.heads
    heads_per_group = shape.heads // shape.key_value_heads
    with torch.no_grad():
        # A residual stream of this size is not drowned by what twelve layers copy into it ...
        model.model.embed_tokens.weight.mul_(5)
        # ... and the last norm makes up for it, so that the first logits are small.
        model.model.norm.weight.fill_(0.2)
        for layer in cast(Iterable[Any], model.model.layers):
            random_square = torch.randn(shape.hidden, shape.hidden)
            # [key_value_heads * width, hidden], rows orthonormal.
            basis = torch.linalg.qr(random_square)[0][: shape.key_value_heads * width]
            layer.self_attn.v_proj.weight.copy_(_VALUE_SCALE * basis)
            groups = basis.reshape(shape.key_value_heads, width, shape.hidden)
            per_head = groups.repeat_interleave(heads_per_group, dim=0).flatten(0, 1)
            layer.self_attn.o_proj.weight.copy_(_OUTPUT_SCALE * per_head.T)
            # What a layer adds starts small, so that the sum over all does not drown the stream.
            layer.mlp.down_proj.weight.mul_((2 * shape.layers) ** -0.5)
    return model
