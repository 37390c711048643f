"""What this node holds, and what it does about the plan.

Every node computes the whole plan, and acts on its own part of it alone:

    view changed --settle_s--> plan --+--> layers to load: one chunk at a time
      (bounded by settle_max_s,       |
       so churn cannot starve it)     +--> layers to drop: make before break

A layer's life here:

    (absent) --planned--> LOADING --loaded--> READY --surplus--> DRAINING --drain_s--> (absent)
                             |                  ^                    |
                             +--plan changed--> (absent)             +-- no longer safe, or planned

The whole range that is planned is announced as LOADING at once, before its first chunk is read:
the others then count on it, and a plan made in the middle of a load does not send it elsewhere.

A READY layer that the plan gives to others is dropped only if

1. as many others hold it READY as the plan gives it copies, at most R, and at least one;
2. of all nodes that could drop it, this one has the lowest rank;
3. no session here uses it;

and 1 and 2 must hold when it is announced as DRAINING *and* `drain_s` later. `drain_s` is longer
than gossip takes, so of two nodes that start at the same time on stale views each sees the other
DRAINING, which does not count as READY, before it drops. Hence no layer loses its last READY
holder to a plan: whoever of the droppers started last has seen all others' DRAINING, and so
counted only nodes that stay.

Where memory is full, loading waits for drops. A plan under which full nodes would wait for each
other for ever is not made while the model is whole (`p2pllm.core.transitions`). Where layers are
missing, such a plan can still come up, if the only holders of two layers have to change places to
make room for the missing ones; then both keep what they have, until another node joins or goes.

A failed load is tried again after a growing pause; after `attempts_max` failures in a row the model
is given up here and no longer listed among those this node can be given layers of. A model that the
swarm no longer serves is dropped as soon as no session uses it. A leaving node changes nothing any
more: it serves until the last session is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from p2pllm.core.capacity import PlacementConfig, kv_reserve_bytes, rank, weight_bytes
from p2pllm.core.effects import DropLayers, Effect, LoadLayers, Notify, ResolveModel
from p2pllm.core.events import LayersFailed, LayersLoaded, ModelResolved, TimerFired
from p2pllm.core.placement import DEFAULT_PLACEMENT, Plan, plan
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange, ranges_of
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import (
    HOLDINGS_MAX,
    MODELS_MAX,
    Holding,
    HoldingState,
    MemberState,
    NodeRecord,
    SwarmView,
)

InUse = Callable[[ModelId, LayerRange], bool]
"""Whether a session here still needs any of these layers."""


@dataclass(frozen=True, slots=True)
class HoldingsConfig:
    """Paces of `Holdings`.

    Attributes:
        settle_s: how long the view must stay the same before it is planned with.
        settle_max_s: after which it is planned with even if it keeps changing.
        drain_s: from announcing that a layer will be dropped to dropping it; more than gossip
            takes to reach everybody, and at least `settle_s`.
        chunk_layers: most layers read in one go.
        retry_s: pause after the first failed load; doubles with each further one.
        retry_max_s: longest pause after a failed load.
        attempts_max: failed loads in a row after which a model is given up.
        resolve_retry_s: pause after a model's files could not be reached; doubles.
        resolve_retry_max_s: the longest such pause.
    """

    settle_s: float = 1.0
    settle_max_s: float = 5.0
    drain_s: float = 5.0
    chunk_layers: int = 4
    retry_s: float = 1.0
    retry_max_s: float = 60.0
    attempts_max: int = 5
    resolve_retry_s: float = 15.0
    resolve_retry_max_s: float = 600.0


@dataclass(slots=True)
class _Model:
    """One model here.

    Attributes:
        spec: what it is.
        served: whether the swarm serves it.
        reachable: whether its files can be reached; None until known.
        resolving: a ResolveModel is under way.
        resolve_at: when to ask again.
        resolve_failures: in a row.
        ready: layers loaded and not about to be dropped.
        draining: layers about to be dropped, and since when.
        wanted: layers to be loaded, those being loaded included.
        failures: failed loads in a row.
        retry_at: no load before.
        given_up: too many failures.
    """

    spec: ModelSpec
    served: bool = True
    reachable: bool | None = None
    resolving: bool = False
    resolve_at: float = 0.0
    resolve_failures: int = 0
    ready: set[int] = field(default_factory=set[int])
    draining: dict[int, float] = field(default_factory=dict[int, float])
    wanted: set[int] = field(default_factory=set[int])
    failures: int = 0
    retry_at: float = 0.0
    given_up: bool = False

    @property
    def usable(self) -> bool:
        return self.served and self.reachable is True and not self.given_up


class Holdings:
    """Turns plans into loads and drops of this node.

    Feed it `observe` at every change of the view, the events it handles, and `TimerFired` at
    `deadline()`; after each call, announce `holdings` and `models` in the node's record.

    Args:
        node: this node.
        in_use: whether a session here still needs layers.
        config: its paces.
        placement: what the whole swarm plans with.
    """

    def __init__(
        self,
        node: NodeId,
        *,
        in_use: InUse,
        config: HoldingsConfig | None = None,
        placement: PlacementConfig = DEFAULT_PLACEMENT,
    ) -> None:
        self._node = node
        self._in_use = in_use
        self._config = config or HoldingsConfig()
        self._placement = placement
        self._view: SwarmView | None = None
        self._key: object = None
        self._plan: Plan | None = None
        self._models: dict[ModelId, _Model] = {}
        self._loading: tuple[ModelId, LayerRange] | None = None
        self._changed_at: float | None = None  # first change that is not planned with yet
        self._settle_at: float | None = None  # when to plan
        self._poll_at: float | None = (
            None  # when to try again, or look whether a drained layer is free
        )
        self._leaving = False

    # -- what the node says of itself ------------------------------------------------------------

    @property
    def holdings(self) -> tuple[Holding, ...]:
        """What to announce, by model and layer; at most `HOLDINGS_MAX`."""
        found: list[Holding] = []
        for state in (HoldingState.READY, HoldingState.DRAINING, HoldingState.LOADING):
            for model in sorted(self._models):
                found.extend(
                    Holding(model, layers, state)
                    for layers in ranges_of(self._layers(self._models[model], state))
                )
        # Beyond the bound, what is merely planned is left unsaid first: that misleads nobody.
        return tuple(
            sorted(found[:HOLDINGS_MAX], key=lambda item: (item.model, item.layers, item.state))
        )

    @property
    def models(self) -> tuple[ModelId, ...]:
        """Served models whose files this node can reach; at most `MODELS_MAX`."""
        return tuple(model for model in sorted(self._models) if self._models[model].usable)[
            :MODELS_MAX
        ]

    @property
    def settled(self) -> bool:
        """Whether the plan for the present view is made and carried out here."""
        return (
            self._settle_at is None
            and self._loading is None
            and not any(entry.wanted or entry.draining for entry in self._models.values())
        )

    @property
    def plan(self) -> Plan | None:
        """The plan it follows; None before the first."""
        return self._plan

    def _layers(self, entry: _Model, state: HoldingState) -> Iterable[int]:
        if not entry.served:
            gone = {*entry.ready, *entry.draining}
            return gone if state is HoldingState.DRAINING else ()
        if state is HoldingState.READY:
            return entry.ready
        return entry.draining if state is HoldingState.DRAINING else entry.wanted

    # -- what happens ----------------------------------------------------------------------------

    def observe(self, view: SwarmView, now: float) -> list[Effect]:
        """The swarm looks like `view` now; cheap where nothing that matters has changed."""
        if view is self._view:
            return []
        self._view = view
        key = self._relevant(view)
        if key == self._key:
            return []
        self._key = key
        self._changed(now)
        effects = self._follow_models(view, now)
        return effects + self._act(now)

    def handle(
        self, event: ModelResolved | LayersLoaded | LayersFailed | TimerFired, *, now: float
    ) -> list[Effect]:
        """One of the events that concern it."""
        effects: list[Effect] = []
        match event:
            case TimerFired():
                self._settle(now)
            case ModelResolved():
                effects = self._resolved(event, now)
            case LayersLoaded():
                effects = self._loaded(event)
            case LayersFailed():
                effects = self._failed(event, now)
        return effects + self._act(now)

    def leave(self) -> None:
        """This node is on its way out: load and drop nothing any more."""
        self._leaving = True
        for entry in self._models.values():
            entry.wanted.clear()

    def deadline(self) -> float | None:
        """When to feed it `TimerFired`; None for not at all."""
        if self._leaving:
            return None
        times = [time for time in (self._settle_at, self._poll_at) if time is not None]
        return min(times, default=None)

    def check(self) -> None:
        """Assert the invariants."""
        assert len(self.holdings) <= HOLDINGS_MAX
        assert len(self.models) <= MODELS_MAX
        assert (self._settle_at is None) == (self._changed_at is None)
        if self._loading is not None:
            assert self._loading[0] in self._models
        for entry in self._models.values():
            layers = range(entry.spec.num_layers)
            assert entry.ready.isdisjoint(entry.draining)
            assert entry.ready.isdisjoint(entry.wanted)
            assert entry.wanted.isdisjoint(entry.draining)
            assert all(layer in layers for layer in (*entry.ready, *entry.draining, *entry.wanted))

    # -- planning --------------------------------------------------------------------------------

    def _relevant(self, view: SwarmView) -> object:
        """All of the view that plans and drops depend on, what this node itself holds left out."""
        members: list[object] = []
        for member in view.members:
            record = member.record
            mine = record.node == self._node
            members.append(
                (
                    record.node,
                    member.state,
                    record.leaving,
                    record.memory_bytes,
                    record.layers_max,
                    record.parameter_bytes,
                    record.speed_bytes_s,
                    () if mine else record.models,
                    () if mine else record.holdings,
                )
            )
        return (members, [(spec.id, spec.fingerprint) for spec in view.models])

    def _changed(self, now: float) -> None:
        """Something that plans depend on is different; plan once it has settled."""
        if self._changed_at is None:
            self._changed_at = now
        self._settle_at = min(
            now + self._config.settle_s, self._changed_at + self._config.settle_max_s
        )

    def _settle(self, now: float) -> None:
        if self._settle_at is None or now < self._settle_at or self._view is None:
            return
        self._settle_at = self._changed_at = None
        if self._leaving:
            return
        view = self._view
        members = tuple(
            replace(
                member,
                record=replace(member.record, holdings=self.holdings, models=self.models),
            )
            if member.record.node == self._node
            else member
            for member in view.members
        )
        self._plan = plan(replace(view, members=members), self._placement)
        for model, entry in self._models.items():
            if entry.served:
                self._aim(model, entry)

    def _aim(self, model: ModelId, entry: _Model) -> None:
        """Want what the plan says, and do not drop it."""
        target = self._target(model)
        for layer in [layer for layer in entry.draining if layer in target]:
            del entry.draining[layer]
            entry.ready.add(layer)
        under_way: set[int] = set()
        if self._loading is not None and self._loading[0] == model:
            under_way = set(range(self._loading[1].start, self._loading[1].stop))
        entry.wanted = (target - entry.ready) | (entry.wanted & under_way)

    def _target(self, model: ModelId) -> set[int]:
        if self._plan is None:
            return set()
        ranges = self._plan.ranges(model, self._node)
        return {layer for item in ranges for layer in range(item.start, item.stop)}

    # -- models ----------------------------------------------------------------------------------

    def _follow_models(self, view: SwarmView, now: float) -> list[Effect]:
        specs = {spec.id: spec for spec in view.models if spec.num_layers > 0}
        effects: list[Effect] = []
        for model, entry in self._models.items():
            spec = specs.get(model)
            served = spec is not None and spec.fingerprint == entry.spec.fingerprint
            if entry.served and not served:
                effects.append(Notify("model_dropped_here", fields={"model": model}))
                entry.wanted.clear()
            elif served and not entry.served:
                entry.failures, entry.given_up = 0, False
            entry.served = served
        for model in sorted(specs):
            if model not in self._models:
                self._models[model] = _Model(specs[model], resolve_at=now)
        return effects

    def _resolved(self, event: ModelResolved, now: float) -> list[Effect]:
        entry = self._models.get(event.model)
        if entry is None:
            return []
        entry.resolving = False
        if event.reachable:
            entry.reachable, entry.resolve_failures = True, 0
            self._changed(now)
            return []
        entry.reachable = False
        pause_s = self._config.resolve_retry_s * 2.0 ** min(entry.resolve_failures, 32)
        entry.resolve_failures += 1
        entry.resolve_at = now + min(self._config.resolve_retry_max_s, pause_s)
        fields: dict[str, str | int | float | bool | None] = {
            "model": event.model,
            "detail": event.detail,
            "retry_in_s": entry.resolve_at - now,
        }
        return [Notify("model_unreachable", "warning", fields)]

    # -- loading ---------------------------------------------------------------------------------

    def _loaded(self, event: LayersLoaded) -> list[Effect]:
        if self._loading != (event.model, event.layers):
            return []
        self._loading = None
        entry = self._models[event.model]
        entry.failures = 0
        loaded = set(range(event.layers.start, event.layers.stop))
        entry.wanted -= loaded
        kept = loaded & self._target(event.model) if entry.served else set[int]()
        if self._leaving:
            kept = loaded
        entry.ready |= kept
        # Nobody was told that the rest is READY, so it may go at once.
        return [DropLayers(event.model, layers) for layers in ranges_of(loaded - kept)]

    def _failed(self, event: LayersFailed, now: float) -> list[Effect]:
        if self._loading != (event.model, event.layers):
            return []
        self._loading = None
        entry = self._models[event.model]
        entry.failures += 1
        fields: dict[str, str | int | float | bool | None] = {
            "model": event.model,
            "layers": str(event.layers),
            "detail": event.detail,
            "attempt": entry.failures,
        }
        if entry.failures >= self._config.attempts_max:
            entry.given_up = True
            entry.wanted.clear()
            self._changed(now)
            return [Notify("model_given_up", "error", fields)]
        pause_s = self._config.retry_s * 2.0 ** (entry.failures - 1)
        entry.retry_at = now + min(self._config.retry_max_s, pause_s)
        # What is wanted may have changed meanwhile.
        self._aim(event.model, entry)
        return [Notify("load_failed", "warning", fields)]

    def _next_load(self, now: float) -> LoadLayers | None:
        """The next chunk that there is room for: what nobody else serves first."""
        record = self._own_record()
        if self._loading is not None or record is None:
            return None
        room = record.memory_bytes
        layers_left = record.layers_max if record.layers_max is not None else 2**31
        for model in sorted(self._models):
            entry = self._models[model]
            sizes = self._sizes(entry.spec, record)
            here = {*entry.ready, *entry.draining}
            room -= sum(sizes[layer] for layer in here)
            layers_left -= len(here)
        for model in sorted(self._models):
            entry = self._models[model]
            if not entry.wanted or not entry.usable or now < entry.retry_at:
                continue
            counts = self._ready_elsewhere(model)
            start = min(entry.wanted, key=lambda layer: (counts[layer], layer))
            sizes = self._sizes(entry.spec, record)
            stop, used = start, 0
            while (
                stop in entry.wanted
                and stop - start < min(self._config.chunk_layers, layers_left)
                and used + sizes[stop] <= room
            ):
                used += sizes[stop]
                stop += 1
            if stop > start:
                return LoadLayers(model, LayerRange(start, stop))
        return None

    def _sizes(self, spec: ModelSpec, record: NodeRecord) -> list[int]:
        """Bytes per layer, the KV cache that it needs at least included."""
        weights = weight_bytes(spec, record.parameter_bytes)
        reserve = kv_reserve_bytes(spec, record.parameter_bytes, self._placement)
        return [left + right for left, right in zip(weights, reserve, strict=True)]

    def _own_record(self) -> NodeRecord | None:
        if self._view is None:
            return None
        return next(
            (item.record for item in self._view.members if item.record.node == self._node), None
        )

    def _ready_elsewhere(self, model: ModelId) -> list[int]:
        """READY holders per layer other than this node; suspects do not count."""
        counts = [0] * self._models[model].spec.num_layers
        if self._view is None:
            return counts
        for member in self._view.usable():
            if member.record.node == self._node or member.state is not MemberState.ALIVE:
                continue
            for item in member.record.holdings:
                if item.model == model and item.state is HoldingState.READY:
                    for layer in range(item.layers.start, min(item.layers.stop, len(counts))):
                        counts[layer] += 1
        return counts

    # -- dropping --------------------------------------------------------------------------------

    def _act(self, now: float) -> list[Effect]:
        """Whatever can be done now."""
        if self._leaving:
            return []
        effects: list[Effect] = []
        self._poll_at = None
        for model in sorted(self._models):
            entry = self._models[model]
            if entry.served and entry.reachable is not True and not entry.resolving:
                if now < entry.resolve_at:
                    self._poll(entry.resolve_at)
                else:
                    entry.resolving = True
                    effects.append(ResolveModel(entry.spec))
            if entry.wanted and now < entry.retry_at:
                self._poll(entry.retry_at)
            if entry.served:
                effects += self._drain(model, entry, now)
            else:
                effects += self._drop_unserved(model, entry, now)
        load = self._next_load(now)
        if load is not None:
            self._loading = (load.model, load.layers)
            effects.append(load)
        return effects

    def _drop_unserved(self, model: ModelId, entry: _Model, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for layers in ranges_of([*entry.ready, *entry.draining]):
            if self._in_use(model, layers):
                self._poll(now + self._config.settle_s)
                continue
            gone = set(range(layers.start, layers.stop))
            entry.ready -= gone
            for layer in gone & entry.draining.keys():
                del entry.draining[layer]
            effects.append(DropLayers(model, layers))
        under_way = self._loading is not None and self._loading[0] == model
        if not entry.ready and not entry.draining and not under_way and not entry.resolving:
            # A model of that name with another fingerprint may come; it starts anew then.
            del self._models[model]
            spec = self._view.model(model) if self._view is not None else None
            if spec is not None:
                self._models[model] = _Model(spec, resolve_at=now)
                self._poll(now)
        return effects

    def _drain(self, model: ModelId, entry: _Model, now: float) -> list[Effect]:
        """Announce drops, carry them out when their time has come, and take them back."""
        surplus = entry.ready - self._target(model) if self._plan is not None else set[int]()
        if not surplus and not entry.draining:
            return []
        safe = self._safe_to_drop(model, entry)
        for layer in sorted(entry.draining):
            if layer not in safe:
                del entry.draining[layer]
                entry.ready.add(layer)
        for layer in sorted(surplus & safe):
            entry.ready.discard(layer)
            entry.draining[layer] = now
        due: list[int] = []
        for layer, since in sorted(entry.draining.items()):
            at = since + max(self._config.drain_s, self._config.settle_s)
            if now < at:
                self._poll(at)
            elif self._in_use(model, LayerRange(layer, layer + 1)):
                self._poll(now + self._config.settle_s)
            else:
                due.append(layer)
                del entry.draining[layer]
        return [DropLayers(model, layers) for layers in ranges_of(due)]

    def _safe_to_drop(self, model: ModelId, entry: _Model) -> set[int]:
        """Layers that this node may drop as things look now: rules 1 and 2 of the module's text."""
        planned = self._plan.models.get(model) if self._plan is not None else None
        if planned is None or self._view is None:
            return set()
        counts = self._ready_elsewhere(model)
        own_rank = (rank(self._node, model), self._node)
        candidates = {*entry.ready, *entry.draining} - self._target(model)
        safe = {
            layer
            for layer in candidates
            if planned.copies[layer] > 0
            and counts[layer] >= min(self._placement.replicas, planned.copies[layer])
        }
        for member in self._view.usable():
            node = member.record.node
            if node == self._node or (rank(node, model), node) > own_rank:
                continue
            keeps = planned.ranges(node)
            for item in member.record.holdings:
                if item.model == model and item.state is not HoldingState.LOADING:
                    safe.difference_update(
                        layer
                        for layer in range(item.layers.start, item.layers.stop)
                        if not any(layer in kept for kept in keeps)
                    )
        return safe

    def _poll(self, at: float) -> None:
        self._poll_at = at if self._poll_at is None else min(self._poll_at, at)
