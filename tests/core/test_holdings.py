from __future__ import annotations

from dataclasses import replace
from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core.capacity import PlacementConfig, rank
from p2pllm.core.effects import DropLayers, Effect, LoadLayers, Notify, ResolveModel
from p2pllm.core.events import LayersFailed, LayersLoaded, ModelResolved, TimerFired
from p2pllm.core.holdings import Holdings, HoldingsConfig
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import (
    HOLDINGS_MAX,
    HoldingState,
    Member,
    MemberState,
    NodeRecord,
    SwarmView,
)
from tests.core.swarm_worlds import MODEL, holding, member, model, node_id, record, view_of

CONFIG = HoldingsConfig()
PLACEMENT = PlacementConfig(kv_share=0.0)


def machine(
    *, placement: PlacementConfig = PLACEMENT, busy: list[tuple[ModelId, LayerRange]] | None = None
) -> Holdings:
    busy = busy if busy is not None else []

    def in_use(name: ModelId, layers: LayerRange) -> bool:
        return any(
            name == used and layers.start < item.stop and item.start < layers.stop
            for used, item in busy
        )

    return Holdings(node_id(1), in_use=in_use, config=CONFIG, placement=placement)


def of_type(effects: list[Effect], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def alone(spec: ModelSpec, memory: int = 100_000) -> SwarmView:
    return view_of(member(record(node_id(1), memory=memory)), models=(spec,), self_id=node_id(1))


def resolved(holdings: Holdings, view: SwarmView, now: float = 0.0) -> list[Effect]:
    """Observe, find the files, let the view settle; what it does then."""
    (ask,) = holdings.observe(view, now)
    assert isinstance(ask, ResolveModel)
    assert holdings.handle(ModelResolved(MODEL, True), now=now) == []
    assert holdings.models == (MODEL,)
    assert holdings.deadline() == now + CONFIG.settle_s
    return holdings.handle(TimerFired(), now=now + CONFIG.settle_s)


def load_all(holdings: Holdings, effects: list[Effect], now: float) -> list[LoadLayers]:
    """Answer every load with success; the loads in order."""
    loads: list[LoadLayers] = []
    while asked := of_type(effects, LoadLayers):
        (load,) = asked
        assert isinstance(load, LoadLayers)
        loads.append(load)
        effects = holdings.handle(LayersLoaded(load.model, load.layers), now=now)
        holdings.check()
    return loads


def test_it_asks_for_the_files_waits_for_the_view_to_settle_and_loads_in_chunks() -> None:
    holdings = machine()
    effects = resolved(holdings, alone(model(10)))
    assert effects == [LoadLayers(MODEL, LayerRange(0, 4))]
    # The others may count on all of it from the start.
    assert holdings.holdings == (holding(0, 10, HoldingState.LOADING),)
    loads = load_all(holdings, effects, 1.0)
    assert [load.layers for load in loads] == [
        LayerRange(0, 4),
        LayerRange(4, 8),
        LayerRange(8, 10),
    ]
    assert holdings.holdings == (holding(0, 10),)
    assert holdings.settled
    assert holdings.deadline() is None


def test_layers_that_nobody_serves_come_first() -> None:
    holdings = machine()
    other = member(record(node_id(2), memory=6_000, holdings=(holding(0, 6),)))
    view = view_of(
        member(record(node_id(1), memory=100_000)), other, models=(model(10),), self_id=node_id(1)
    )
    assert resolved(holdings, view) == [LoadLayers(MODEL, LayerRange(6, 10))]


def test_a_changing_view_delays_the_plan_but_not_for_ever() -> None:
    holdings = machine()
    spec = model(10)
    holdings.observe(alone(spec), 0.0)
    holdings.handle(ModelResolved(MODEL, True), now=0.0)
    now = 0.0
    planned_at = None
    for change in range(1, 40):
        now += 0.5
        holdings.observe(alone(spec, 100_000 + change), now)
        deadline = holdings.deadline()
        assert deadline is not None
        if deadline <= now and of_type(holdings.handle(TimerFired(), now=now), LoadLayers):
            planned_at = now
            break
    assert planned_at == pytest.approx(CONFIG.settle_max_s, abs=0.5)


def test_the_same_view_and_load_figures_change_nothing() -> None:
    holdings = machine()
    view = alone(model(4))
    load_all(holdings, resolved(holdings, view), 1.0)
    busy = replace(view, members=(member(view.members[0].record, queue_steps=9, sessions=4),))
    assert holdings.observe(busy, 2.0) == []
    assert holdings.deadline() is None


def test_a_failed_load_is_tried_again_ever_later_and_then_given_up() -> None:
    holdings = machine()
    (load,) = resolved(holdings, alone(model(4)))
    assert isinstance(load, LoadLayers)
    now, pauses = 1.0, []
    for attempt in range(1, CONFIG.attempts_max):
        effects = holdings.handle(LayersFailed(MODEL, load.layers, "disk full"), now=now)
        assert [e.event for e in effects if isinstance(e, Notify)] == ["load_failed"], attempt
        assert not of_type(effects, LoadLayers)
        deadline = holdings.deadline()
        assert deadline is not None
        pauses.append(deadline - now)
        now = deadline
        assert holdings.handle(TimerFired(), now=now) == [load]
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    effects = holdings.handle(LayersFailed(MODEL, load.layers, "disk full"), now=now)
    assert [e.event for e in effects if isinstance(e, Notify)] == ["model_given_up"]
    assert holdings.models == ()
    assert holdings.holdings == ()
    deadline = holdings.deadline()
    assert deadline is not None
    assert holdings.handle(TimerFired(), now=deadline) == []
    assert holdings.deadline() is None


def test_files_that_cannot_be_reached_are_asked_for_again_ever_later() -> None:
    holdings = machine()
    view = alone(model(4))
    holdings.observe(view, 0.0)
    effects = holdings.handle(ModelResolved(MODEL, False, "no such folder"), now=0.0)
    assert [e.event for e in effects if isinstance(e, Notify)] == ["model_unreachable"]
    assert holdings.models == ()
    holdings.handle(TimerFired(), now=1.0)
    assert holdings.deadline() == CONFIG.resolve_retry_s
    effects = holdings.handle(TimerFired(), now=CONFIG.resolve_retry_s)
    assert of_type(effects, ResolveModel)
    holdings.handle(ModelResolved(MODEL, False), now=20.0)
    assert holdings.deadline() == 20.0 + 2 * CONFIG.resolve_retry_s


def test_a_model_that_is_removed_is_dropped_once_no_session_uses_it() -> None:
    busy = [(MODEL, LayerRange(0, 4))]
    holdings = machine(busy=busy)
    view = alone(model(4))
    load_all(holdings, resolved(holdings, view), 1.0)
    effects = holdings.observe(replace(view, models=()), 2.0)
    assert not of_type(effects, DropLayers)
    assert holdings.models == ()
    assert holdings.holdings == (holding(0, 4, HoldingState.DRAINING),)
    busy.clear()
    deadline = holdings.deadline()
    assert deadline is not None
    effects = holdings.handle(TimerFired(), now=deadline)
    assert effects == [DropLayers(MODEL, LayerRange(0, 4))]
    assert holdings.holdings == ()
    holdings.check()


def test_a_model_removed_during_a_load_is_dropped_after_it() -> None:
    holdings = machine()
    view = alone(model(4))
    (load,) = resolved(holdings, view)
    assert isinstance(load, LoadLayers)
    holdings.observe(replace(view, models=()), 2.0)
    effects = holdings.handle(LayersLoaded(MODEL, load.layers), now=3.0)
    assert DropLayers(MODEL, load.layers) in effects
    assert holdings.holdings == ()


def test_other_files_under_the_same_name_are_loaded_anew() -> None:
    holdings = machine()
    view = alone(model(4))
    load_all(holdings, resolved(holdings, view), 1.0)
    other = replace(model(4), fingerprint="1" * 32)
    effects = holdings.observe(replace(view, models=(other,)), 2.0)
    assert of_type(effects, DropLayers) == [DropLayers(MODEL, LayerRange(0, 4))]
    deadline = holdings.deadline()
    assert deadline == 2.0
    effects = holdings.handle(TimerFired(), now=2.0)
    assert of_type(effects, ResolveModel) == [ResolveModel(other)]


def surplus_case(others: dict[int, HoldingState]) -> tuple[Holdings, SwarmView, float]:
    """Node 1 holds all of a model that at most one node may hold; `others` hold it too."""
    holdings = machine(placement=PlacementConfig(kv_share=0.0, replicas_max=1))
    spec = model(4)
    load_all(holdings, resolved(holdings, alone(spec)), 1.0)
    members = [
        member(record(node_id(number), holdings=(holding(0, 4, state),)))
        for number, state in others.items()
    ]
    own = member(record(node_id(1), memory=100_000, holdings=holdings.holdings))
    view = view_of(own, *members, models=(spec,), self_id=node_id(1))
    holdings.observe(view, 2.0)
    return holdings, view, 3.0


def low_and_high() -> tuple[int, int]:
    """Numbers of two nodes that rank below and above node 1."""
    own = rank(node_id(1), MODEL)
    low = next(n for n in range(2, 99) if rank(node_id(n), MODEL) < own)
    high = next(n for n in range(2, 99) if rank(node_id(n), MODEL) > own)
    return low, high


def test_a_surplus_layer_is_announced_as_draining_before_it_is_dropped() -> None:
    _, high = low_and_high()
    holdings, _, now = surplus_case({high: HoldingState.READY})
    assert not of_type(holdings.handle(TimerFired(), now=now), DropLayers)
    assert holdings.holdings == (holding(0, 4, HoldingState.DRAINING),)
    assert holdings.deadline() == now + CONFIG.drain_s
    effects = holdings.handle(TimerFired(), now=now + CONFIG.drain_s)
    assert effects == [DropLayers(MODEL, LayerRange(0, 4))]
    assert holdings.holdings == ()


@pytest.mark.parametrize("state", [HoldingState.LOADING, HoldingState.DRAINING])
def test_it_stays_while_the_others_are_not_ready(state: HoldingState) -> None:
    _, high = low_and_high()
    holdings, _, now = surplus_case({high: state})
    assert not of_type(holdings.handle(TimerFired(), now=now), DropLayers)
    assert holdings.holdings == (holding(0, 4),)


def test_of_two_that_could_drop_a_layer_the_lower_ranked_goes_first() -> None:
    """Three nodes hold all, the plan keeps one copy; one of the other two is to wait."""
    low, high = low_and_high()
    for other, expected in ((low, HoldingState.READY), (high, HoldingState.DRAINING)):
        holdings = machine(placement=PlacementConfig(kv_share=0.0, replicas_max=1))
        spec = model(4)
        load_all(holdings, resolved(holdings, alone(spec)), 1.0)
        keeper = next(
            n for n in range(100, 999) if rank(node_id(n), MODEL) > rank(node_id(high), MODEL)
        )
        own = member(record(node_id(1), memory=100_000, holdings=holdings.holdings))
        others = [member(record(node_id(n), holdings=(holding(0, 4),))) for n in (other, keeper)]
        holdings.observe(view_of(own, *others, models=(spec,), self_id=node_id(1)), 2.0)
        holdings.handle(TimerFired(), now=3.0)
        assert holdings.plan is not None
        assert list(holdings.plan.models[MODEL].windows) == [node_id(keeper)]
        assert holdings.holdings == (holding(0, 4, expected),)


def test_draining_is_taken_back_when_the_other_holder_goes() -> None:
    _, high = low_and_high()
    holdings, view, now = surplus_case({high: HoldingState.READY})
    holdings.handle(TimerFired(), now=now)
    gone = tuple(
        replace(item, state=MemberState.SUSPECT) if item.record.node != node_id(1) else item
        for item in view.members
    )
    holdings.observe(replace(view, members=gone), now + 1.0)
    assert holdings.holdings == (holding(0, 4),)


def test_a_layer_in_use_is_dropped_only_after_the_session() -> None:
    _, high = low_and_high()
    busy: list[tuple[ModelId, LayerRange]] = [(MODEL, LayerRange(1, 2))]
    holdings = machine(placement=PlacementConfig(kv_share=0.0, replicas_max=1), busy=busy)
    spec = model(4)
    load_all(holdings, resolved(holdings, alone(spec)), 1.0)
    other = member(record(node_id(high), holdings=(holding(0, 4),)))
    own = member(record(node_id(1), memory=100_000, holdings=holdings.holdings))
    holdings.observe(view_of(own, other, models=(spec,), self_id=node_id(1)), 2.0)
    holdings.handle(TimerFired(), now=3.0)
    effects = holdings.handle(TimerFired(), now=8.0)
    assert effects == [DropLayers(MODEL, LayerRange(0, 1)), DropLayers(MODEL, LayerRange(2, 4))]
    busy.clear()
    assert holdings.deadline() == 9.0
    assert holdings.handle(TimerFired(), now=9.0) == [DropLayers(MODEL, LayerRange(1, 2))]


def test_a_leaving_node_changes_nothing_any_more() -> None:
    _, high = low_and_high()
    holdings, _, now = surplus_case({high: HoldingState.READY})
    holdings.leave()
    assert holdings.handle(TimerFired(), now=now) == []
    assert holdings.holdings == (holding(0, 4),)
    assert holdings.deadline() is None


def test_what_it_announces_is_bounded() -> None:
    holdings = machine()
    specs = tuple(model(4, name=ModelId(f"m{number:02}")) for number in range(20))
    names = tuple(spec.id for spec in specs)
    own = member(record(node_id(1), memory=10**9, models=names))
    holdings.observe(view_of(own, models=specs, self_id=node_id(1)), 0.0)
    for name in names:
        holdings.handle(ModelResolved(name, True), now=0.0)
    load_all(holdings, holdings.handle(TimerFired(), now=1.0), 1.0)
    assert len(holdings.holdings) <= HOLDINGS_MAX
    holdings.check()


class Swarm:
    """Several machines that see each other's records late, each at its own delay."""

    def __init__(
        self,
        rooms: dict[NodeId, int],
        spec: ModelSpec,
        random: Random,
        *,
        delay_max_s: float,
        placement: PlacementConfig = PLACEMENT,
    ) -> None:
        self.spec = spec
        self.now = 0.0
        self._random = random
        self._delay_max_s = delay_max_s
        self._placement = placement
        self._queue: list[tuple[float, int, NodeId, object]] = []
        self._count = 0
        self.machines: dict[NodeId, Holdings] = {}
        self._seen: dict[NodeId, dict[NodeId, NodeRecord]] = {}
        self._models = (spec,)
        self.dropped: list[tuple[float, NodeId, LayerRange]] = []
        self._crashed_at = float("-inf")
        for node, room in rooms.items():
            self.join(node, room)

    def join(self, node: NodeId, room: int, speed: int = 1_000_000) -> None:
        self.machines[node] = Holdings(
            node,
            in_use=lambda name, layers: False,
            config=CONFIG,
            placement=self._placement,
        )
        own = record(node, memory=room, speed=speed, models=())
        known = {item: self._seen[item][item] for item in self._seen}
        self._seen[node] = {**known, node: own}
        self._publish(own)
        self._look(node)

    def set_speed(self, node: NodeId, speed: int) -> None:
        own = self._seen[node][node]
        self._seen[node][node] = replace(own, version=own.version + 1, speed_bytes_s=speed)
        self._publish(self._seen[node][node])
        self._look(node)

    def crash(self, node: NodeId) -> None:
        self._crashed_at = self.now
        del self.machines[node]
        del self._seen[node]
        for other in sorted(self.machines):
            self._later(other, node)

    def _later(self, node: NodeId, item: object, delay_s: float | None = None) -> None:
        delay_s = self._random.uniform(0.05, self._delay_max_s) if delay_s is None else delay_s
        self._count += 1
        heappush(self._queue, (self.now + delay_s, self._count, node, item))

    def _publish(self, item: NodeRecord) -> None:
        for other in sorted(self.machines):
            if other != item.node:
                self._later(other, item)

    def _view(self, node: NodeId) -> SwarmView:
        members = [Member(item, MemberState.ALIVE) for item in self._seen[node].values()]
        return view_of(*members, models=self._models, self_id=node)

    def _look(self, node: NodeId) -> None:
        self._perform(node, self.machines[node].observe(self._view(node), self.now))

    def _perform(self, node: NodeId, effects: list[Effect]) -> None:
        holdings = self.machines[node]
        holdings.check()
        for effect in effects:
            match effect:
                case ResolveModel():
                    self._later(node, ModelResolved(effect.spec.id, True), 0.1)
                case LoadLayers():
                    pause_s = self._random.uniform(0.1, 2.0)
                    self._later(node, LayersLoaded(effect.model, effect.layers), pause_s)
                case DropLayers():
                    self.dropped.append((self.now, node, effect.layers))
                case _:
                    pass
        own = self._seen[node][node]
        if own.holdings != holdings.holdings or own.models != holdings.models:
            own = replace(
                own,
                version=own.version + 1,
                holdings=holdings.holdings,
                models=holdings.models,
            )
            self._seen[node][node] = own
            self._publish(own)
            self._look(node)

    def ready_holders(self) -> list[int]:
        """Per layer, how many nodes really can serve it now."""
        counts = [0] * self.spec.num_layers
        for holdings in self.machines.values():
            for item in holdings.holdings:
                if item.state is not HoldingState.LOADING:
                    for layer in range(item.layers.start, item.layers.stop):
                        counts[layer] += 1
        return counts

    def run(self, until: float) -> None:
        while True:
            deadlines = sorted(
                (deadline, node)
                for node, holdings in self.machines.items()
                if (deadline := holdings.deadline()) is not None
            )
            at_queue = self._queue[0][0] if self._queue else float("inf")
            at_timer = deadlines[0][0] if deadlines else float("inf")
            if min(at_queue, at_timer) > until:
                self.now = until
                return
            before = self.ready_holders()
            drops = len(self.dropped)
            if at_queue <= at_timer:
                self.now, _, node, item = heappop(self._queue)
                if node in self.machines:
                    self._deliver(node, item)
            else:
                self.now, node = max(self.now, at_timer), deadlines[0][1]
                self._perform(node, self.machines[node].handle(TimerFired(), now=self.now))
            # A crash nobody can know of yet is not a plan's doing; membership takes its time.
            if len(self.dropped) > drops and self.now > self._crashed_at + self._delay_max_s:
                for layer, (old, new) in enumerate(zip(before, self.ready_holders(), strict=True)):
                    assert new >= 1 or old == 0, f"layer {layer} lost its last holder"

    def _deliver(self, node: NodeId, item: object) -> None:
        seen = self._seen[node]
        if isinstance(item, NodeRecord):
            old = seen.get(item.node)
            if item.node in self.machines and (old is None or old.stamp < item.stamp):
                seen[item.node] = item
                self._look(node)
        elif isinstance(item, ModelResolved | LayersLoaded):
            self._perform(node, self.machines[node].handle(item, now=self.now))
        else:
            seen.pop(NodeId(str(item)), None)
            self._look(node)


@given(
    st.lists(st.integers(2, 12), min_size=2, max_size=5),
    st.lists(
        st.tuples(st.sampled_from(["join", "crash", "speed"]), st.integers(2, 12)), max_size=4
    ),
    st.sampled_from([None, 1, 2]),
    st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_no_layer_loses_its_last_holder_to_a_plan_however_stale_the_views(
    rooms: list[int], changes: list[tuple[str, int]], replicas_max: int | None, seed: int
) -> None:
    random = Random(seed)
    config = PlacementConfig(kv_share=0.0, replicas_max=replicas_max, gain_min=0.02, move_cost=0.0)
    swarm = Swarm(
        {node_id(number): room * 1_000 for number, room in enumerate(rooms)},
        model(12),
        random,
        delay_max_s=CONFIG.drain_s * 0.95,
        placement=config,
    )
    for number, (change, amount) in enumerate(changes):
        swarm.run(swarm.now + random.choice([1.0, 8.0, 40.0]))
        if change == "join":
            swarm.join(node_id(100 + number), amount * 1_000, 10**5 * amount**2)
        elif change == "speed":
            node = random.choice(sorted(swarm.machines))
            swarm.set_speed(node, 10**5 * amount**2)
        elif len(swarm.machines) > 1:
            swarm.crash(random.choice(sorted(swarm.machines)))
    swarm.run(swarm.now + 60.0)


def test_three_nodes_started_together_load_each_layer_where_it_stays() -> None:
    swarm = Swarm({}, model(12), Random(3), delay_max_s=0.4)
    for number in range(3):
        swarm.join(node_id(number), 6_000)
        swarm.run(swarm.now + 0.3)
    swarm.run(60.0)
    assert min(swarm.ready_holders()) >= 1
    assert sum(swarm.ready_holders()) == 18
    assert swarm.dropped == []
    assert all(holdings.settled for holdings in swarm.machines.values())


def test_a_swarm_covers_its_model_again_after_a_crash() -> None:
    swarm = Swarm(
        {node_id(number): 6_000 for number in range(4)}, model(12), Random(4), delay_max_s=0.4
    )
    swarm.run(40.0)
    assert min(swarm.ready_holders()) >= 1
    swarm.crash(node_id(2))
    swarm.run(120.0)
    assert min(swarm.ready_holders()) >= 1
    assert all(holdings.settled for holdings in swarm.machines.values())


@pytest.mark.parametrize("seed", range(5))
def test_machines_started_one_after_another_serve_without_waiting_for_a_drain(seed: int) -> None:
    """The first fills up while it is alone; it has to do so where the others can go on from."""
    swarm = Swarm({}, model(12), Random(seed), delay_max_s=0.4)
    for number in range(3):
        swarm.join(node_id(number + 3 * seed), 5_000)
        swarm.run(swarm.now + 2.0)
    swarm.run(4.0 + CONFIG.settle_s + CONFIG.drain_s)
    assert min(swarm.ready_holders()) >= 1
    assert swarm.dropped == []
