"""Keys and values of one session on one node.

A node holds some layers of a model, and a hop runs some of those; transformers' cache counts all
layers from 0 and asks layer 0, or the first layer of a kind, how long the past is. So the cache
here has a place for every layer of the model, of which those that never run stay empty and cost
nothing, and questions about a layer outside the hop are answered by a running layer of the same
kind. Layers keep their own numbers, a window may wrap, and holes do not matter.

Full-attention layers keep their entries in a buffer that grows by whole blocks, so that a decode
step writes one row and does not copy the past. Sliding-window layers use transformers' own, which
keeps no more than the window.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

KV_BLOCK_TOKENS = 256
"""Positions by which a layer's buffer grows."""


class GrowingLayer(DynamicLayer):
    """Keys and values of a full-attention layer, `[batch, heads, positions, head size]`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = 0
        self.key_buffer: torch.Tensor | None = None
        self.value_buffer: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return everything so far, as views of the buffers."""
        start, stop = self.length, self.length + key_states.shape[-2]
        self.key_buffer = _with_room(self.key_buffer, key_states, start, stop)
        self.value_buffer = _with_room(self.value_buffer, value_states, start, stop)
        self.key_buffer[:, :, start:stop] = key_states
        self.value_buffer[:, :, start:stop] = value_states
        self.length = stop
        self.keys = self.key_buffer[:, :, :stop]
        self.values = self.value_buffer[:, :, :stop]
        self.is_initialized = True
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions cached so far."""
        return self.length


class StageCache(DynamicCache):
    """The cache of one `(session, attempt)`.

    Call `run` with the hop's layers before each forward pass.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config=config)
        # Models whose layers keep anything else were refused when they were described.
        self._places = [
            GrowingLayer() if type(layer) is DynamicLayer else cast("DynamicLayer", layer)
            for layer in self.layers
        ]
        self.layers = list[Any](self._places)
        self._kinds = [
            (type(layer), getattr(layer, "sliding_window", None)) for layer in self._places
        ]
        self._start = 0
        self._stop = len(self._places)

    def run(self, start: int, stop: int) -> None:
        """Answer for layers `start` to `stop - 1` from now on."""
        self._start, self._stop = start, stop

    def length(self, layer: int) -> int:
        """Positions that `layer` has cached."""
        return self._places[layer].get_seq_length()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions cached before this pass."""
        running = self._start <= layer_idx < self._stop
        return self._places[layer_idx if running else self._start].get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys a layer of this kind will see."""
        return self._places[self._stand_in(layer_idx)].get_mask_sizes(query_length)

    def size_bytes(self) -> int:
        """Memory taken, room to grow included."""
        return sum(
            tensor.untyped_storage().nbytes()
            for layer in self._places
            for tensor in (layer.keys, layer.values)
            if tensor is not None
        )

    def _stand_in(self, layer: int) -> int:
        if self._start <= layer < self._stop:
            return layer
        kinds = self._kinds
        wanted = kinds[layer]
        return next(
            (number for number in range(self._start, self._stop) if kinds[number] == wanted),
            # No layer of this kind runs, so nobody will look at the mask this is for.
            self._start,
        )


def _with_room(
    buffer: torch.Tensor | None, states: torch.Tensor, used: int, needed: int
) -> torch.Tensor:
    if buffer is not None and buffer.shape[2] >= needed:
        return buffer
    capacity = -(-needed // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
    batch, heads, _, size = states.shape
    grown = states.new_empty((batch, heads, capacity, size))
    if buffer is not None:
        grown[:, :, :used] = buffer[:, :, :used]
    return grown
