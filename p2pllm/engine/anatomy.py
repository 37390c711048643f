"""Finding the parts of a transformers model, whatever its family, without reading its weights.

The model is built on the meta device, where tensors have shapes but no contents, and one forward
pass of a few tokens is started with it. What runs before layer 0 is the *entry* (embeddings,
position tables, a norm behind them); every layer is asked for its keys and values and stopped as
soon as it hands them to the cache, so that no expert router has to decide anything without data;
what holds parameters and did not run before layer 0 is the *exit* (final norm, output head). No
line here knows a family by its name.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from p2pllm.domain.errors import ModelRefusedError
from p2pllm.weights.checkpoint import Checkpoint

_CACHE_KINDS = (DynamicLayer, DynamicSlidingWindowLayer)

_TRACE_ROWS = 7
"""Tokens in the trial pass; a size that no other dimension of a shape is taken for."""


@dataclass(frozen=True, slots=True)
class EntryModule:
    """A module with parameters that runs before layer 0.

    Attributes:
        name: its path in the model.
        shape: of its output, None standing for the number of tokens; None as a whole where it
            returns something else, and has to be held everywhere.
        is_tied: whether the head shares its weights.
    """

    name: str
    shape: tuple[int | None, ...] | None
    is_tied: bool


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of one model.

    Attributes:
        model_class: the transformers class.
        config: its configuration, as transformers completed it.
        layers_path: where the list of layers is in the model.
        entry: what runs before layer 0.
        exit: names of the modules with parameters that do not.
        forward_accepts: names of the forward method's parameters.
        layer_parameters: number of weights per layer.
        kv_elements: key and value elements that each layer caches per token.
        entry_parameters: number of weights of the entry.
        exit_parameters: number of weights of the exit, a tied matrix included.
        hidden_size: elements of one row between layers.
        shapes: of every parameter and buffer that a checkpoint may hold, by name.
    """

    model_class: type[nn.Module]
    config: PretrainedConfig = field(repr=False)
    layers_path: str
    entry: tuple[EntryModule, ...]
    exit: tuple[str, ...]
    forward_accepts: frozenset[str] = field(repr=False)
    layer_parameters: tuple[int, ...]
    kv_elements: tuple[int, ...]
    entry_parameters: int
    exit_parameters: int
    hidden_size: int
    shapes: dict[str, tuple[int, ...]] = field(repr=False)

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        return len(self.layer_parameters)


class _KeysSeen(Exception):
    """A layer handed its keys and values to the cache."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements


class _TraceDone(Exception):
    """Layer 0 was reached, and all layers were asked."""


class _AskingCache(DynamicCache):
    """Stops the layer that updates it and says how much it would have cached."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise _KeysSeen((key_states.numel() + value_states.numel()) // _TRACE_ROWS)


def read_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """Have transformers read the configuration.

    Raises:
        ModelRefusedError: it does not know the architecture, or the configuration is broken.
    """
    raw = checkpoint.config
    model_type = raw.get("model_type")
    architecture = _architecture(raw)
    try:
        config = AutoConfig.from_pretrained(
            str(checkpoint.folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        if "auto_map" in raw:
            reason = "it needs code that comes with the model, which p2pllm never runs"
        elif isinstance(error, ValueError | KeyError) and not _is_known(model_type):
            reason = f"this version of transformers does not know its type {model_type!r}"
        else:
            reason = f"transformers cannot read its configuration ({_first_line(error)})"
        raise ModelRefusedError(f"{architecture} cannot be run: {reason}.") from error
    return config


def dissect(checkpoint: Checkpoint) -> Anatomy:
    """Find a model's parts. Blocks; takes up to a few seconds for models of many layers.

    Raises:
        ModelRefusedError: the architecture cannot be cut into stages; the message names it and
            the reason.
    """
    config = read_config(checkpoint)
    architecture = _architecture(checkpoint.config)
    _refuse_by_config(architecture, checkpoint, config)
    # Masks of the eager kind are made without looking into a tensor, which meta tensors need.
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                trust_remote_code=False,
                dtype=torch.float32,
                attn_implementation="eager",
            )
    except Exception as error:
        raise ModelRefusedError(
            f"{architecture} cannot be run: transformers cannot build it ({_first_line(error)})."
        ) from error
    model.eval()
    layers_path, layers = find_layers(model, architecture)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layer_parameters = tuple(_count(layer) for layer in layers)
    outputs, kv_elements, hidden_size = _trace(model, layers, architecture)
    tied = tied_sources(model)
    entry: list[EntryModule] = []
    leave: list[str] = []
    entry_parameters = exit_parameters = 0
    for name, module in _shell_modules(model, layers_path):
        size = sum(parameter.numel() for _, parameter in _own_parameters(module))
        if name in outputs:
            is_tied = any(f"{name}.{own}" in tied for own, _ in _own_parameters(module))
            entry.append(EntryModule(name, outputs[name], is_tied))
            entry_parameters += size
        else:
            leave.append(name)
            exit_parameters += size
    accepted = inspect.signature(model.forward).parameters
    return Anatomy(
        model_class=type(model),
        config=config,
        layers_path=layers_path,
        entry=tuple(entry),
        exit=tuple(leave),
        forward_accepts=frozenset(accepted),
        layer_parameters=layer_parameters,
        kv_elements=kv_elements,
        entry_parameters=entry_parameters,
        exit_parameters=exit_parameters,
        hidden_size=hidden_size,
        shapes=shapes,
    )


def find_layers(model: nn.Module, architecture: str) -> tuple[str, nn.ModuleList]:
    """The list of layers and its path: the heaviest list as long as the model is deep.

    Raises:
        ModelRefusedError: there is none.
    """
    config = cast("Any", model).config.get_text_config(decoder=True)
    depth = getattr(config, "num_hidden_layers", None)
    candidates: dict[str, nn.ModuleList] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    }
    if not candidates:
        raise ModelRefusedError(
            f"{architecture} cannot be run: it has no list of {depth} layers to cut."
        )
    path = max(candidates, key=lambda name: _count(candidates[name]))
    return path, candidates[path]


def tied_sources(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that other parameters share."""
    return frozenset(tied_weights(model).values())


def tied_weights(model: nn.Module) -> dict[str, str]:
    """For each parameter that shares another's weights, by name, the other's name."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _refuse_by_config(architecture: str, checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    reason = ""
    text_config = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        reason = "it is an encoder-decoder; p2pllm runs decoder-only models"
    elif text_config is not config:
        reason = "it is a multimodal model; p2pllm runs text models"
    elif "quantization_config" in checkpoint.config:
        method = (checkpoint.config["quantization_config"] or {}).get("quant_method", "unknown")
        reason = f"its weights are quantised ({method}); use the unquantised model"
    elif architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        reason = "it is not a causal language model"
    elif getattr(text_config, "num_kv_shared_layers", 0) or getattr(
        text_config, "kv_sharing_modes", None
    ):
        reason = "its layers share keys and values with each other, across stages"
    elif not all(type(layer) in _CACHE_KINDS for layer in DynamicCache(config=config).layers):
        reason = "its layers keep other state than keys and values (linear attention)"
    if reason:
        raise ModelRefusedError(f"{architecture} cannot be run: {reason}.")


def _trace(
    model: nn.Module, layers: nn.ModuleList, architecture: str
) -> tuple[dict[str, tuple[int | None, ...] | None], tuple[int, ...], int]:
    """Run up to layer 0.

    Returns:
        Output shapes of the entry, cached elements per layer and token, and the hidden size.
    """
    outputs: dict[str, tuple[int | None, ...] | None] = {}
    kv_elements: list[int] = []
    cached: list[nn.Module] = list(layers)
    hidden_sizes: list[int] = []

    def ask(*args: Any, **kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[:-1] != (1, _TRACE_ROWS):
            raise ModelRefusedError(
                f"{architecture} cannot be run: its layers pass on more than one hidden state."
            )
        hidden_sizes.append(hidden.shape[-1])
        for number, layer in enumerate(cached):
            call = own_forward if number == 0 else layer
            try:
                call(*args, **kwargs)
            except _KeysSeen as seen:
                kv_elements.append(seen.elements)
            else:
                raise ModelRefusedError(
                    f"{architecture} cannot be run: its layer {number} keeps no keys and values."
                )
        raise _TraceDone

    hooks = [
        module.register_forward_hook(_recorder(outputs, name))
        for name, module in model.named_modules()
        if _own_parameters(module)
    ]
    own_forward = cached[0].forward
    cached[0].forward = ask
    try:
        with torch.no_grad():
            model(
                input_ids=torch.zeros((1, _TRACE_ROWS), dtype=torch.long, device="meta"),
                past_key_values=_AskingCache(config=cast("Any", model).config),
                use_cache=True,
            )
    except _TraceDone:
        pass
    except ModelRefusedError:
        raise
    except Exception as error:
        raise ModelRefusedError(
            f"{architecture} cannot be run: it does not cut into stages ({_first_line(error)})."
        ) from error
    finally:
        cached[0].forward = own_forward
        for hook in hooks:
            hook.remove()
    if len(kv_elements) != len(cached):
        raise ModelRefusedError(f"{architecture} cannot be run: its layers are not run in order.")
    inside = {id(module) for layer in cached for module in layer.modules()}
    named = dict(model.named_modules())
    return (
        {name: shape for name, shape in outputs.items() if id(named[name]) not in inside},
        tuple(kv_elements),
        hidden_sizes[0],
    )


def _recorder(outputs: dict[str, tuple[int | None, ...] | None], name: str) -> Any:
    def record(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.shape.count(_TRACE_ROWS) == 1:
            outputs[name] = tuple(None if size == _TRACE_ROWS else size for size in output.shape)
        else:
            outputs[name] = None

    return record


def _shell_modules(model: nn.Module, layers_path: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules outside the layers that own parameters."""
    for name, module in model.named_modules():
        if _own_parameters(module) and not name.startswith(layers_path + "."):
            yield name, module


def _own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _count(module: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in module.parameters())


def _architecture(raw: Any) -> str:
    names = raw.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(raw.get("model_type"))
    return known if isinstance(known, str) else str(raw.get("model_type", "The model"))


def _is_known(model_type: object) -> bool:
    return isinstance(model_type, str) and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
