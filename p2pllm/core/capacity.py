"""How many layers fit where: what a layer costs a node, and how far a window may reach.

A node holds `parameters * parameter_bytes` per layer, the embedding with the first and the head
with the last. Beside the weights there must be room for the KV cache of one session of
`PlacementConfig.kv_tokens` positions, or a held layer could never serve; `kv_share` keeps a part
of the memory free of weights for further sessions.

Positions on the ring of a model's L layers are unrolled: a window is `(start, stop)` with
`0 <= start < L` and `start < stop <= start + L`; where `stop > L` it wraps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange, LayerWindow
from p2pllm.domain.models import ModelSpec

Window = tuple[int, int]
"""Unrolled start and stop; see the module's text."""


@dataclass(frozen=True, slots=True)
class PlacementConfig:
    """What every node of a swarm must agree on for their plans to agree.

    Attributes:
        replicas: copies of every layer to aim for where memory allows.
        replicas_max: copies of a layer beyond which nobody holds it; None holds as many as fit.
        kv_tokens: positions of KV cache that must fit beside the weights, for one session; the
            model's context where that is shorter.
        kv_share: part of a node's memory that weights leave free for KV cache, unless the model
            fits into the swarm only without it.
        gain_min: relative gain in throughput below which nobody moves. Speeds are measured to
            within 10 %, so a gain of up to 1.1 / 0.9 may be noise.
        move_cost: relative gain in throughput that moving the whole model's bytes must buy.
        hop_cost: relative gain in throughput that an additional hop must buy.
        search_nodes_max: up to as many nodes the search tries every window of every node.
    """

    replicas: int = 2
    replicas_max: int | None = None
    kv_tokens: int = 2_048
    kv_share: float = 0.15
    gain_min: float = 0.23
    move_cost: float = 0.3
    hop_cost: float = 0.02
    search_nodes_max: int = 16


def stable_fraction(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but `parts`; the same on every machine."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def anchor_fraction(node: NodeId, model: ModelId) -> float:
    """Where consistent hashing puts `node` on the ring of `model`, in [0, 1)."""
    return stable_fraction("anchor", node, model)


def rank(node: NodeId, model: ModelId) -> float:
    """Breaks ties between nodes; of several that may drop a layer, the lowest goes first."""
    return stable_fraction("rank", node, model)


def weight_bytes(spec: ModelSpec, parameter_bytes: int) -> tuple[int, ...]:
    """Bytes of the weights per layer, embedding and head counted to the ends."""
    return tuple(size * parameter_bytes for size in spec.layer_parameters())


def compute_weights(spec: ModelSpec) -> tuple[int, ...]:
    """Elements that a decode step streams per layer.

    The head counts, the embedding does not, since a step reads one row of it.
    """
    sizes = list(spec.layer_parameters())
    sizes[0] -= spec.embedding_parameters
    return tuple(max(1, size) for size in sizes)


def kv_reserve_bytes(
    spec: ModelSpec, parameter_bytes: int, config: PlacementConfig
) -> tuple[int, ...]:
    """Bytes per layer of the one session that must always fit."""
    tokens = min(spec.context_length_max, config.kv_tokens)
    return tuple(size * parameter_bytes * tokens for size in spec.layer_kv_elements())


def range_bytes(sizes: Sequence[int], ranges: Sequence[LayerRange]) -> int:
    """Sum of `sizes` over `ranges`."""
    return sum(sum(sizes[item.start : item.stop]) for item in ranges)


@dataclass(frozen=True, slots=True)
class Budget:
    """What one node may spend on one model.

    Attributes:
        memory_bytes: weights and KV reserve together.
        weights_bytes: weights alone.
        layers: layers.
    """

    memory_bytes: int
    weights_bytes: int
    layers: int


def reach_table(weights: Sequence[int], reserve: Sequence[int], budget: Budget) -> tuple[int, ...]:
    """For every start, the furthest unrolled stop that `budget` allows; the start where none."""
    ring = len(weights)
    span_max = min(ring, budget.layers)
    table: list[int] = []
    stop = 0
    used_weights = 0
    used = 0
    for start in range(ring):
        if stop < start:
            stop, used, used_weights = start, 0, 0
        while stop - start < span_max:
            layer = stop % ring
            more_weights = used_weights + weights[layer]
            more = used + weights[layer] + reserve[layer]
            if more > budget.memory_bytes or more_weights > budget.weights_bytes:
                break
            stop, used, used_weights = stop + 1, more, more_weights
        table.append(stop)
        if stop > start:
            used -= weights[start] + reserve[start]
            used_weights -= weights[start]
    return tuple(table)


def prefix_sums(sizes: Sequence[int]) -> tuple[int, ...]:
    """Running sums over two turns of the ring, from 0; `2 * len(sizes) + 1` items."""
    return tuple(accumulate([*sizes, *sizes], initial=0))


def unroll(layers: Sequence[LayerRange], ring: int) -> Window | None:
    """The longest contiguous window within `layers`, which may wrap; the first of several."""
    if not layers:
        return None
    windows = [(item.start, item.stop) for item in layers]
    if len(windows) > 1 and windows[0][0] == 0 and windows[-1][1] == ring:
        windows = [*windows[1:-1], (windows[-1][0], ring + windows[0][1])]
    return max(windows, key=lambda window: (window[1] - window[0], -window[0]))


def as_window(window: Window, ring: int) -> LayerWindow:
    """The same window in the domain's words."""
    start, stop = window
    return LayerWindow(start, stop - start, ring)
