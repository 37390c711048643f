"""Which node holds which layers: a pure function of the gossiped view, current holdings included.

Every node computes the whole plan and acts on its own part of it (`p2pllm.core.holdings`), so
there is no leader; nodes with the same view compute the same plan, whatever the order in which
they learned of each other. A plan that depended on the member set alone would have to move layers
at every join and leave; this one starts from what is held, and lets consistent hashing decide only
what the view leaves open: each node's anchor on the ring of a model's layers, and every tie.

A node takes part in a model's plan if it is alive (or merely suspected), not leaving, and lists
the model among those whose files it can reach. LOADING and READY holdings count as what it holds;
DRAINING ones do not. How windows are chosen is told in `p2pllm.core.windows`.

Several models share a node's memory in proportion to their bytes, in order of id; what one leaves
over goes to those after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2pllm.core.capacity import (
    Budget,
    PlacementConfig,
    Window,
    anchor_fraction,
    as_window,
    compute_weights,
    kv_reserve_bytes,
    prefix_sums,
    range_bytes,
    rank,
    reach_table,
    unroll,
    weight_bytes,
)
from p2pllm.core.layout import Machine, Ring
from p2pllm.core.throughput import hops_min, spans_of, throughput
from p2pllm.core.windows import choose_windows
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange, LayerWindow, merge_ranges, ranges_of
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import HoldingState, NodeRecord, SwarmView


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Who is to hold what of one model.

    Attributes:
        model: which.
        windows: per node, in ascending order of id; a node without a window is not in it.
        weights_bytes: what each node's window takes, weights alone.
        copies: holders per layer.
        uncovered: layers that do not fit anywhere; empty if the model can be served.
        tokens_per_s: the best throughput any routing can reach, all sessions together; 0 while
            a layer is uncovered. Reckoned from weight streaming alone, so batching can beat it.
        hops: the fewest hops of a path.
    """

    model: ModelId
    windows: Mapping[NodeId, LayerWindow]
    weights_bytes: Mapping[NodeId, int]
    copies: tuple[int, ...]
    uncovered: tuple[LayerRange, ...]
    tokens_per_s: float
    hops: int

    def ranges(self, node: NodeId) -> tuple[LayerRange, ...]:
        """What `node` is to hold; empty for nothing."""
        window = self.windows.get(node)
        return window.ranges() if window is not None else ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is to hold what; one entry per served model, in ascending order of id."""

    models: Mapping[ModelId, ModelPlan]

    def ranges(self, model: ModelId, node: NodeId) -> tuple[LayerRange, ...]:
        """What `node` is to hold of `model`; empty for nothing."""
        entry = self.models.get(model)
        return entry.ranges(node) if entry is not None else ()


@dataclass(frozen=True, slots=True)
class Change:
    """What one node has to do about one model for the plan to come true.

    Attributes:
        node: who.
        model: which.
        load: ranges to load.
        drop: ranges to drop, once others hold them.
        load_bytes: weights to read.
        drop_bytes: weights to free.
    """

    node: NodeId
    model: ModelId
    load: tuple[LayerRange, ...]
    drop: tuple[LayerRange, ...]
    load_bytes: int
    drop_bytes: int


DEFAULT_PLACEMENT = PlacementConfig()


def held_ranges(record: NodeRecord, spec: ModelSpec) -> tuple[LayerRange, ...]:
    """What counts as held by a node when planning: LOADING and READY, merged."""
    ring = spec.num_layers
    return merge_ranges(
        LayerRange(item.layers.start, min(item.layers.stop, ring))
        for item in record.holdings
        if item.model == spec.id
        and item.state is not HoldingState.DRAINING
        and item.layers.start < ring
    )


def plan(view: SwarmView, config: PlacementConfig = DEFAULT_PLACEMENT) -> Plan:
    """The plan for `view`; the same for everybody who has the same view and configuration."""
    records = sorted((member.record for member in view.usable()), key=lambda item: item.node)
    specs = sorted((spec for spec in view.models if spec.num_layers > 0), key=lambda spec: spec.id)
    purse = {
        record.node: _Purse(record, specs, config) for record in records if record.memory_bytes > 0
    }
    entries: dict[ModelId, ModelPlan] = {}
    for spec in specs:
        able = [record for record in records if record.node in purse and spec.id in record.models]
        entry = _plan_model(spec, able, purse, config, tight=False)
        if entry.uncovered:
            squeezed = _plan_model(spec, able, purse, config, tight=True)
            if sum(map(len, squeezed.uncovered)) < sum(map(len, entry.uncovered)):
                entry = squeezed
        for record in able:
            purse[record.node].spend(spec, entry.ranges(record.node))
        entries[spec.id] = entry
    return Plan(entries)


def what_changes(view: SwarmView, target: Plan) -> tuple[Change, ...]:
    """What has to be loaded and dropped to get from what is held to `target`, by node and model.

    Models that the swarm serves no longer are not in it.
    """
    changes: list[Change] = []
    for member in sorted(view.usable(), key=lambda item: item.record.node):
        record = member.record
        for spec in sorted(view.models, key=lambda item: item.id):
            wanted = target.ranges(spec.id, record.node)
            wanted_layers = {layer for item in wanted for layer in range(item.start, item.stop)}
            held = held_ranges(record, spec)
            held_layers = {layer for item in held for layer in range(item.start, item.stop)}
            load = ranges_of(wanted_layers - held_layers)
            drop = ranges_of(held_layers - wanted_layers)
            if load or drop:
                sizes = weight_bytes(spec, record.parameter_bytes)
                load_bytes, drop_bytes = range_bytes(sizes, load), range_bytes(sizes, drop)
                changes.append(Change(record.node, spec.id, load, drop, load_bytes, drop_bytes))
    return tuple(changes)


class _Purse:
    """What a node still has to spend, on the models it can reach."""

    def __init__(self, record: NodeRecord, specs: list[ModelSpec], config: PlacementConfig) -> None:
        self._record = record
        self._config = config
        self._memory = record.memory_bytes
        self._weights = int(record.memory_bytes * (1 - config.kv_share))
        self._layers = record.layers_max
        self._waiting = {
            spec.id: (
                sum(weight_bytes(spec, record.parameter_bytes))
                + sum(kv_reserve_bytes(spec, record.parameter_bytes, config)),
                spec.num_layers,
            )
            for spec in specs
            if spec.id in record.models
        }

    def budget(self, spec: ModelSpec, *, tight: bool) -> Budget:
        """Its share for `spec`; `tight` gives up the free part for KV cache."""
        size, layers = self._waiting[spec.id]
        size_all = max(1, sum(item[0] for item in self._waiting.values()))
        layers_all = max(1, sum(item[1] for item in self._waiting.values()))
        memory = self._memory * size // size_all
        weights = memory if tight else min(memory, self._weights * size // size_all)
        layers_max = layers if self._layers is None else self._layers * layers // layers_all
        return Budget(max(0, memory), max(0, weights), max(0, layers_max))

    def spend(self, spec: ModelSpec, ranges: tuple[LayerRange, ...]) -> None:
        """The plan for `spec` gives it `ranges`."""
        parameter_bytes = self._record.parameter_bytes
        weights = range_bytes(weight_bytes(spec, parameter_bytes), ranges)
        reserve = range_bytes(kv_reserve_bytes(spec, parameter_bytes, self._config), ranges)
        self._memory -= weights + reserve
        self._weights -= weights
        if self._layers is not None:
            self._layers -= sum(map(len, ranges))
        del self._waiting[spec.id]


def _plan_model(
    spec: ModelSpec,
    records: list[NodeRecord],
    purse: Mapping[NodeId, _Purse],
    config: PlacementConfig,
    *,
    tight: bool,
) -> ModelPlan:
    layers = spec.num_layers
    tables: dict[tuple[int, Budget], tuple[int, ...]] = {}
    machines: list[Machine] = []
    for record in records:
        budget = purse[record.node].budget(spec, tight=tight)
        key = (record.parameter_bytes, budget)
        if key not in tables:
            tables[key] = reach_table(
                weight_bytes(spec, record.parameter_bytes),
                kv_reserve_bytes(spec, record.parameter_bytes, config),
                budget,
            )
        machines.append(
            Machine(
                node=record.node,
                rate=max(1, record.speed_bytes_s) / max(1, record.parameter_bytes),
                reach=tables[key],
                current=unroll(held_ranges(record, spec), layers),
                anchor=anchor_fraction(record.node, spec.id),
                rank=rank(record.node, spec.id),
            )
        )
    compute = prefix_sums(compute_weights(spec))
    ring = Ring(layers, compute, prefix_sums([max(1, n) for n in spec.layer_parameters()]))
    windows: list[Window | None] = choose_windows(machines, ring, config) if machines else []
    copies = [0] * layers
    for window in windows:
        if window is not None:
            for layer in range(*window):
                copies[layer % layers] += 1
    uncovered = ranges_of(layer for layer, count in enumerate(copies) if count == 0)
    tokens_per_s = 0.0
    if not uncovered:
        rates = [machine.rate for machine in machines]
        tokens_per_s = throughput(spans_of(windows, compute, layers), rates, compute[layers])
    chosen = {
        record.node: as_window(window, layers)
        for record, window in zip(records, windows, strict=True)
        if window is not None
    }
    return ModelPlan(
        model=spec.id,
        windows=chosen,
        weights_bytes={
            record.node: range_bytes(
                weight_bytes(spec, record.parameter_bytes), chosen[record.node].ranges()
            )
            for record in records
            if record.node in chosen
        },
        copies=tuple(copies),
        uncovered=uncovered,
        tokens_per_s=tokens_per_s,
        hops=hops_min(windows, layers),
    )
