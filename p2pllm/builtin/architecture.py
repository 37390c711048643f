"""The built-in model's shape: a Llama of many thin layers."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from p2pllm.builtin.tokenizer import POSITIONS_MAX


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; the defaults are those of the model shipped."""

    layers: int = 12
    hidden: int = 128
    feed_forward: int = 320
    heads: int = 4
    # Fewer key/value heads than query heads: the built-in model exercises grouped-query attention.
    key_value_heads: int = 2


def new_model(
    shape: Shape, *, vocabulary: int, begin_token: int, end_token: int, seed: int
) -> LlamaForCausalLM:
    """Return an untrained model, the same for the same seed."""
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
    # What every layer adds to the residual stream starts small, so that the sum over all layers
    # starts no larger than the embedding.
    scale = (2 * shape.layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(scale)
    return model
