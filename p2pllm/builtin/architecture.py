"""The built-in model's shape: a Llama of many thin layers."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from p2pllm.builtin.tokenizer import POSITIONS_MAX


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

    Its attention starts as one that copies. Queries and keys are projected alike, so that a place
    where a name is due attends to names; the value and output projections undo each other, so that
    what is attended to becomes likelier to come next (the embedding is tied). After "Mimetic
    Initialization of Self-Attention Layers" (Trockman and Kolter, 2023),
    https://arxiv.org/abs/2305.09828.
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
    with torch.no_grad():
        # A residual stream of this size is not drowned by what the layers copy into it ...
        model.model.embed_tokens.weight.mul_(5)
        # ... and the last norm makes up for it, so that the first logits are small.
        model.model.norm.weight.fill_(0.2)
        for layer in _layers(model):
            _start_copying(layer, shape)
            # What a layer adds starts small, so that the sum over all does not drown the stream.
            layer.mlp.down_proj.weight.mul_((2 * shape.layers) ** -0.5)
    return model


def grown(model: LlamaForCausalLM, layers: int) -> LlamaForCausalLM:
    """Return a deeper model that computes what ``model`` does.

    Every layer is followed by copies of itself whose outputs are zero: they change nothing until
    they are trained, and then start from a layer that works.

    Raises:
        ValueError: ``layers`` is no multiple of the layers that there are.
    """
    configuration = LlamaConfig.from_dict(model.config.to_dict())
    copies, rest = divmod(layers, configuration.num_hidden_layers)
    if rest:
        raise ValueError(f"{layers} is no multiple of {configuration.num_hidden_layers} layers.")
    configuration.num_hidden_layers = layers
    deeper = LlamaForCausalLM(configuration)
    with torch.no_grad():
        deeper.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
        deeper.model.norm.load_state_dict(model.model.norm.state_dict())
        for index, layer in enumerate(_layers(deeper)):
            layer.load_state_dict(_layers(model)[index // copies].state_dict())
            if index % copies:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    return deeper


def _layers(model: LlamaForCausalLM) -> Any:
    """Return the decoder layers, whose attributes torch's types do not know."""
    return model.model.layers


def _start_copying(layer: Any, shape: Shape) -> None:
    """Set the four projections of a layer's attention, as :func:`new_model` describes."""
    width = shape.hidden // shape.heads
    heads_per_group = shape.heads // shape.key_value_heads

    def random_basis() -> torch.Tensor:
        """Return [key_value_heads * width, hidden], rows orthonormal."""
        square = torch.linalg.qr(torch.randn(shape.hidden, shape.hidden))[0]
        return square[: shape.key_value_heads * width]

    def per_query_head(basis: torch.Tensor) -> torch.Tensor:
        """Repeat each group's rows for every query head that shares the group."""
        groups = basis.reshape(shape.key_value_heads, width, shape.hidden)
        return groups.repeat_interleave(heads_per_group, dim=0).flatten(0, 1)

    keys, values = random_basis(), random_basis()
    queries = per_query_head(keys)
    attention = layer.self_attn
    attention.k_proj.weight.copy_(0.6 * keys)
    attention.q_proj.weight.copy_(0.6 * queries + 0.02 * torch.randn_like(queries))
    attention.v_proj.weight.copy_(1.5 * values)
    attention.o_proj.weight.copy_(0.15 * per_query_head(values).T)
