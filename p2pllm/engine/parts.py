"""Loading some of a model's layers through transformers' own loader, and nothing else from disk.

transformers knows how checkpoints of each family are stored: renamed keys, experts in one tensor or
in many, tied weights. To have all of that and still read only what is wanted, the loader is given a
subclass whose constructor takes out everything else while the model is still on the meta device,
and checkpoint tensors that are read when they are asked for. What no parameter waits for is never
asked for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from p2pllm.domain.errors import ModelRefusedError
from p2pllm.engine.anatomy import Anatomy, tied_weights
from p2pllm.weights.checkpoint import Checkpoint

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

OnBytes = Callable[[int], None]
"""Told how many bytes of weights were read; called from any thread."""

_LOADING = threading.Lock()
# While transformers builds a model it patches torch for the whole process.


@dataclass(frozen=True, slots=True)
class Part:
    """What to load.

    Attributes:
        layers: which layers.
        entry: whether what runs before layer 0 is wanted.
        exit: whether what runs after the last layer is wanted.
    """

    layers: frozenset[int]
    entry: bool
    exit: bool


def load_part(
    anatomy: Anatomy,
    checkpoint: Checkpoint,
    part: Part,
    *,
    dtype: torch.dtype,
    on_bytes: OnBytes | None = None,
) -> PreTrainedModel:
    """Load a part of a model into main memory. Blocks.

    Layers that are not in the part stand in their places without any modules or weights, the entry
    and the exit, where not wanted, as `nn.Identity`.

    Raises:
        ModelRefusedError: the checkpoint lacks a tensor or has one of another shape.
    """
    base = cast("type[PreTrainedModel]", anatomy.model_class)

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        _take_out(self, anatomy, part)
        _set_dtypes(self, dtype)

    # The same name and module, since transformers looks up conversions by them.
    pruned = type(base.__name__, (base,), {"__init__": build, "__module__": base.__module__})
    try:
        # float32 is torch's default type; another would be set for the whole process.
        with _LOADING, LazyTensors(checkpoint, on_bytes) as tensors:
            model, report = cast("Any", pruned).from_pretrained(
                None,
                config=anatomy.config,
                state_dict=dict(tensors),
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelRefusedError(
            f"{checkpoint.folder} does not load as {base.__name__}: {_reason(error)}."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelRefusedError(
            f"{checkpoint.folder} lacks the tensor {missing[0]} that {base.__name__} needs; "
            "download the model again."
        )
    model.requires_grad_(False)
    model.config.dtype = dtype
    return model


def needed_elements(anatomy: Anatomy, part: Part) -> int:
    """How many weights a part has; a matrix that entry and exit share counts once."""
    elements = sum(anatomy.layer_parameters[layer] for layer in part.layers)
    if part.entry:
        elements += anatomy.entry_parameters
    if part.exit:
        elements += anatomy.exit_parameters - (tied_elements(anatomy) if part.entry else 0)
    return elements


def tied_elements(anatomy: Anatomy) -> int:
    """How many weights the exit shares with the entry."""
    return sum(
        math.prod(shape)
        for name, shape in anatomy.shapes.items()
        if any(entry.is_tied and name.startswith(entry.name + ".") for entry in anatomy.entry)
    )


class LazyTensor:
    """A tensor of a checkpoint that is read when it is indexed."""

    def __init__(self, tensor_slice: Any, on_bytes: OnBytes | None) -> None:
        self._slice = tensor_slice
        self._on_bytes = on_bytes

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._slice[index]
        if self._on_bytes is not None:
            self._on_bytes(tensor.numel() * tensor.element_size())
        return tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slice, name)


class LazyTensors(Mapping[str, LazyTensor]):
    """All tensors of a checkpoint; the files stay open while entered."""

    def __init__(self, checkpoint: Checkpoint, on_bytes: OnBytes | None = None) -> None:
        self._checkpoint = checkpoint
        self._on_bytes = on_bytes
        self._files: dict[str, Any] = {}
        self._opened = ExitStack()

    def __enter__(self) -> LazyTensors:
        with ExitStack() as stack:
            for file in sorted({tensor.file for tensor in self._checkpoint.tensors.values()}):
                path = str(Path(self._checkpoint.folder, file))
                self._files[file] = stack.enter_context(safe_open(path, framework="pt"))
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._files.clear()
        self._opened.close()

    def __getitem__(self, name: str) -> LazyTensor:
        file = self._files[self._checkpoint.tensors[name].file]
        return LazyTensor(file.get_slice(name), self._on_bytes)

    def __iter__(self) -> Any:
        return iter(self._checkpoint.tensors)

    def __len__(self) -> int:
        return len(self._checkpoint.tensors)


def hollow(module: nn.Module) -> None:
    """Take everything out of a module but its class and plain attributes."""
    for name, _ in (
        *list(module.named_children()),
        *list(module.named_parameters(recurse=False)),
        *list(module.named_buffers(recurse=False)),
    ):
        delattr(module, name)


def _take_out(model: PreTrainedModel, anatomy: Anatomy, part: Part) -> None:
    layers = cast("nn.ModuleList", model.get_submodule(anatomy.layers_path))
    for number, layer in enumerate(layers):
        if number not in part.layers:
            hollow(layer)
    if not part.exit:
        for name in anatomy.exit:
            model.set_submodule(name, nn.Identity())
    for module in anatomy.entry:
        wanted = part.entry or module.shape is None or (part.exit and module.is_tied)
        if not wanted:
            model.set_submodule(module.name, nn.Identity())
    present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    kept = {
        target: source
        for target, source in tied_weights(model).items()
        if target in present and source in present
    }
    model.all_tied_weights_keys = kept


def _set_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give each parameter its type, float32 where the family insists on it."""
    plan: dict[str, torch.dtype] = cast("Any", model)._get_dtype_plan(dtype)
    insists = [pattern for pattern, kept in plan.items() if kept is torch.float32]
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if any(f".{pattern}." in f".{name}." for pattern in insists):
            continue
        parameter.data = parameter.data.to(dtype)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "size" in line or "shape" in line or "MISMATCH" in line]
    return (telling or lines or [type(error).__name__])[0][:300]
