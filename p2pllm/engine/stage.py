"""A stage: some layers of a model, run through transformers' own forward pass.

The whole model's modules stand here, but layers that this node does not hold are hollow, and a
*gate* is before each layer. A pass always goes in at the front door, with the token ids, so that
positions, masks and rotary tables are made by the family's own code. For a hop over layers
`[a, b)`:

    layer      what its gate does
    i < a      returns its input, in the form this family's layers return
    i = a > 0  puts the received hidden state in place of the input, and runs the layer
    a < i < b  runs the layer
    i = b - 1  runs the layer and, unless logits are wanted, ends the pass with its output

Replacing the input of layer `a` itself, and not handing the state in as `inputs_embeds`, keeps
families right that scale, add positions or normalise between embedding and layer 0. Where layer 0
is not held, the embedding is a stand-in that returns zeros of the right shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from p2pllm.domain.errors import ModelRefusedError
from p2pllm.domain.layers import LayerRange, ranges_of
from p2pllm.engine.anatomy import Anatomy
from p2pllm.engine.cache import StageCache
from p2pllm.engine.parts import Part, load_part
from p2pllm.weights.checkpoint import Checkpoint


class _PassEnded(Exception):
    """The last layer of the hop has run."""


class _Pass:
    """What the gates share: the pass that runs now, and how layers return."""

    def __init__(self) -> None:
        self.start = 0
        self.stop = 0
        self.rows = 0
        self.wants_logits = False
        self.received: torch.Tensor | None = None
        self.output: torch.Tensor | None = None
        # Items in the tuple a layer returns, 0 for a bare tensor; unknown until one has run.
        self.returns: int | None = None
        self.probes = False

    def in_layer_form(self, hidden: torch.Tensor) -> Any:
        """`hidden` as if a layer had returned it."""
        if not self.returns:
            return hidden
        return (hidden,) + (None,) * (self.returns - 1)


class _Gate:
    """Stands for `layer.forward` of one hollow layer."""

    def __init__(self, number: int, current: _Pass) -> None:
        self.number = number
        self.current = current
        self.layer: nn.Module | None = None
        self.probed: nn.Module | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        current = self.current
        if self.probed is not None:
            return self._probe(self.probed, args, kwargs)
        if self.number < current.start:
            return current.in_layer_form(args[0] if args else kwargs["hidden_states"])
        if self.number == current.start and current.received is not None:
            if args:
                args = (current.received, *args[1:])
            else:
                kwargs["hidden_states"] = current.received
        assert self.layer is not None, "the engine checked that the layers are held"
        output = self.layer(*args, **kwargs)
        if self.number == current.stop - 1:
            current.output = output[0] if isinstance(output, tuple) else output
            if not current.wants_logits:
                raise _PassEnded
        return output

    def _probe(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        output = layer(*args, **kwargs)
        self.current.returns = len(output) if isinstance(output, tuple) else 0
        self.current.output = output[0] if isinstance(output, tuple) else output
        raise _PassEnded


class _StandIn(nn.Module):
    """In place of an entry module that is not held: zeros, in the shape it would return."""

    def __init__(
        self,
        current: _Pass,
        shape: tuple[int | None, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.current = current
        self.shape = shape
        # Some families ask the embedding's weight where it is and of which type.
        self.weight = torch.empty(0, dtype=dtype, device=device)

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Zeros."""
        rows = self.current.rows
        shape = [rows if size is None else size for size in self.shape]
        return torch.zeros(shape, dtype=self.weight.dtype, device=self.weight.device)


class Stage:
    """The layers of one model that this node holds.

    `read` may run on another thread at any time; everything else runs on the step thread.

    Attributes:
        anatomy: the model's parts.
        held: numbers of the layers that can be run.
    """

    def __init__(
        self, anatomy: Anatomy, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.anatomy = anatomy
        self.held: set[int] = set()
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._pass = _Pass()
        self._model = load_part(anatomy, checkpoint, Part(frozenset(), False, False), dtype=dtype)
        _move(self._model, device)
        self._gates: list[_Gate] = []
        for number, layer in enumerate(self._layers(self._model)):
            gate = _Gate(number, self._pass)
            layer.forward = gate
            self._gates.append(gate)
        self._has_entry = True
        self._has_exit = False
        self._leave_entry()

    def read(self, layers: Iterable[int], on_bytes: Any = None) -> tuple[Part, PreTrainedModel]:
        """Load layers, and entry and exit with the first and the last, for `install`. Blocks.

        Raises:
            ModelRefusedError: the checkpoint lacks a tensor or has one of another shape.
        """
        wanted = frozenset(layers)
        part = Part(wanted, entry=0 in wanted, exit=self.anatomy.num_layers - 1 in wanted)
        model = load_part(
            self.anatomy, self._checkpoint, part, dtype=self._dtype, on_bytes=on_bytes
        )
        return part, _move(model, self._device)

    def install(self, part: Part, model: PreTrainedModel) -> None:
        """Make what `read` has loaded ready to run.

        Raises:
            ModelRefusedError: a trial of its first layer failed; nothing of the part is held then.
        """
        layers = self._layers(model)
        for number in sorted(part.layers):
            self._gates[number].layer = layers[number]
        if part.entry or part.exit:
            for module in self.anatomy.entry:
                if part.entry or (part.exit and module.is_tied):
                    self._model.set_submodule(module.name, model.get_submodule(module.name))
        if part.exit:
            for name in self.anatomy.exit:
                self._model.set_submodule(name, model.get_submodule(name))
        self._has_entry = self._has_entry or part.entry
        self._has_exit = self._has_exit or part.exit
        self.held |= part.layers
        if self._pass.returns is None:
            try:
                self._probe(min(part.layers))
            except Exception as error:
                for layers in ranges_of(sorted(part.layers)):
                    self.drop(layers)
                raise ModelRefusedError(
                    f"{self.anatomy.model_class.__name__} cannot be run: a trial of layer "
                    f"{min(part.layers)} failed ({type(error).__name__})."
                ) from error

    def drop(self, layers: LayerRange) -> None:
        """Let go of layers, and of entry and exit with the first and the last."""
        for number in range(layers.start, layers.stop):
            self._gates[number].layer = None
            self.held.discard(number)
        if self.anatomy.num_layers - 1 in layers and self._has_exit:
            self._has_exit = False
            for name in self.anatomy.exit:
                self._model.set_submodule(name, nn.Identity())
            if not self._has_entry:
                self._leave_entry()
        if 0 in layers and self._has_entry:
            self._leave_entry()

    def new_cache(self) -> StageCache:
        """An empty cache for one session."""
        return StageCache(self.anatomy.config)

    def hidden_states(
        self,
        layers: LayerRange,
        position: int,
        tokens: torch.Tensor,
        received: torch.Tensor | None,
        cache: StageCache,
    ) -> torch.Tensor:
        """Run `layers` and return what the last of them returned, `[tokens, hidden size]`.

        Args:
            layers: held ones.
            position: of the first token.
            tokens: ids, `[tokens]`.
            received: the input of the first layer, `[tokens, hidden size]`; None for layer 0.
            cache: the session's.
        """
        self._run(layers, position, tokens, received, cache, wants_logits=False)
        assert self._pass.output is not None
        output, self._pass.output = self._pass.output, None
        return output[0]

    def logits(
        self,
        layers: LayerRange,
        position: int,
        tokens: torch.Tensor,
        received: torch.Tensor | None,
        cache: StageCache,
    ) -> torch.Tensor:
        """Run `layers`, which end with the last, and return the last token's logits, `[ids]`."""
        output = self._run(layers, position, tokens, received, cache, wants_logits=True)
        self._pass.output = None
        return output.logits[0, -1]

    def weight_bytes(self) -> int:
        """Bytes of the weights held here, shared ones counted once."""
        modules = [self._model, *(gate.layer for gate in self._gates if gate.layer is not None)]
        storages = {
            tensor.data_ptr(): tensor.numel() * tensor.element_size()
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }
        return sum(storages.values())

    def _run(
        self,
        layers: LayerRange,
        position: int,
        tokens: torch.Tensor,
        received: torch.Tensor | None,
        cache: StageCache,
        *,
        wants_logits: bool,
    ) -> Any:
        current = self._pass
        current.start, current.stop = layers.start, layers.stop
        current.rows = len(tokens)
        current.wants_logits = wants_logits
        current.received = None if received is None else received.unsqueeze(0)
        cache.run(layers.start, layers.stop)
        arguments: dict[str, Any] = {
            "input_ids": tokens.unsqueeze(0),
            "past_key_values": cache,
            "use_cache": True,
        }
        accepts = self.anatomy.forward_accepts
        positions = torch.arange(position, position + len(tokens), device=tokens.device)
        if "position_ids" in accepts:
            arguments["position_ids"] = positions.unsqueeze(0)
        if "cache_position" in accepts:
            arguments["cache_position"] = positions
        if wants_logits and "logits_to_keep" in accepts:
            arguments["logits_to_keep"] = 1
        try:
            return self._model(**arguments)
        except _PassEnded:
            return None
        finally:
            current.received = None

    def _probe(self, number: int) -> None:
        """Run one token through one layer, to learn in which form layers return."""
        gate = self._gates[0]
        gate.probed = self._gates[number].layer
        try:
            with torch.inference_mode():
                self._run(
                    LayerRange(number, number + 1),
                    0,
                    torch.zeros(1, dtype=torch.long, device=self._device),
                    None,
                    self.new_cache(),
                    wants_logits=False,
                )
        finally:
            gate.probed = None
            self._pass.output = None

    def _leave_entry(self) -> None:
        self._has_entry = False
        for module in self.anatomy.entry:
            if module.shape is None or (module.is_tied and self._has_exit):
                continue
            stand_in = _StandIn(self._pass, module.shape, self._dtype, self._device)
            self._model.set_submodule(module.name, stand_in)

    def _layers(self, model: nn.Module) -> nn.ModuleList:
        return cast("nn.ModuleList", model.get_submodule(self.anatomy.layers_path))


def _move(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    nn.Module.to(model, device)
    return model
