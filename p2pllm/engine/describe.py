"""What the swarm needs to know of a model, read off its configuration and headers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from p2pllm.domain.errors import ModelRefusedError
from p2pllm.domain.ids import ModelId, is_model_id
from p2pllm.domain.models import LAYERS_MAX, LayerRun, ModelSpec
from p2pllm.engine.anatomy import Anatomy, dissect
from p2pllm.weights.checkpoint import Checkpoint

UNSTATED_CONTEXT_TOKENS = 2_048
"""Taken where a configuration states no context length, as BLOOM's may not."""

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "seq_length", "n_ctx")


def describe(checkpoint: Checkpoint, *, model_id: ModelId, reference: str) -> ModelSpec:
    """Describe a model. Blocks for up to a few seconds; reads no weights.

    Raises:
        ModelRefusedError: it cannot be run; the message names the reason.
    """
    if not is_model_id(model_id):
        raise ModelRefusedError(f"{model_id!r} cannot name a model; give it another name.")
    anatomy = dissect(checkpoint)
    _check_shapes(checkpoint, anatomy)
    if anatomy.num_layers > LAYERS_MAX:
        raise ModelRefusedError(f"The model has {anatomy.num_layers} layers; {LAYERS_MAX} is most.")
    config = anatomy.config
    stated = (getattr(config, name, None) for name in _CONTEXT_FIELDS)
    context = next((value for value in stated if isinstance(value, int) and value > 0), None)
    return ModelSpec(
        id=model_id,
        reference=reference,
        fingerprint=checkpoint.fingerprint,
        architecture=anatomy.model_class.__name__,
        runs=_runs(anatomy.layer_parameters, anatomy.kv_elements),
        embedding_parameters=anatomy.entry_parameters,
        head_parameters=anatomy.exit_parameters,
        hidden_size=anatomy.hidden_size,
        context_length_max=context or UNSTATED_CONTEXT_TOKENS,
        vocabulary_size=config.vocab_size,
    )


def _runs(parameters: Sequence[int], kv_elements: Sequence[int]) -> tuple[LayerRun, ...]:
    runs: list[LayerRun] = []
    for size, cached in zip(parameters, kv_elements, strict=True):
        if runs and (runs[-1].parameters, runs[-1].kv_elements) == (size, cached):
            runs[-1] = LayerRun(runs[-1].count + 1, size, cached)
        else:
            runs.append(LayerRun(1, size, cached))
    return tuple(runs)


def _check_shapes(checkpoint: Checkpoint, anatomy: Anatomy) -> None:
    """Compare tensors with the parameters of their name.

    A checkpoint may name and lay out tensors differently (experts apart, matrices transposed), and
    transformers knows how; so only a tensor of the parameter's own name and of another number of
    elements is refused here. The rest shows when it is loaded.
    """
    prefix = f"{getattr(anatomy.model_class, 'base_model_prefix', '')}."
    for name, tensor in checkpoint.tensors.items():
        wanted = anatomy.shapes.get(name) or anatomy.shapes.get(prefix + name)
        if wanted is not None and math.prod(wanted) != math.prod(tensor.shape):
            raise ModelRefusedError(
                f"{checkpoint.folder / tensor.file} has {name} in the shape {list(tensor.shape)}, "
                f"but config.json asks for {list(wanted)}; download the model again."
            )
