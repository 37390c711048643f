from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core.capacity import compute_weights
from p2pllm.core.routing import (
    DEFAULT_ROUTING,
    RoutingPolicy,
    choose_path,
    missing_layers,
)
from p2pllm.domain.errors import NoPathError
from p2pllm.domain.generation import Hop, Path
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import HoldingState, MemberState, SwarmView
from tests.core.swarm_worlds import holding, member, model, node_id, record, view_of


def cost_s(view: SwarmView, spec: ModelSpec, path: Path) -> float:
    """The documented cost of one token, reckoned hop by hop without the search's shortcuts."""
    weights = compute_weights(spec)
    total = 0.0
    for hop in path:
        (entry,) = [item for item in view.members if item.record.node == hop.node]
        load = entry.load
        assert load is not None
        speed = entry.record.speed_bytes_s
        rtt = view.round_trip_s.get(hop.node, DEFAULT_ROUTING.unknown_rtt_s)
        rtt = 0.0 if hop.node == view.self_id else rtt
        held = sum(sum(weights[item.start : item.stop]) for item in entry.record.ready(spec.id))
        wait = load.queue_steps * held / speed
        if load.tokens_per_s > 0:
            wait = min(wait, load.queue_steps / load.tokens_per_s)
        total += wait + rtt + DEFAULT_ROUTING.hop_s
        total += spec.hidden_size / DEFAULT_ROUTING.bandwidth_bytes_s
        slowdown = 1 + DEFAULT_ROUTING.session_slowdown * load.sessions
        total += sum(weights[hop.layers.start : hop.layers.stop]) / speed * slowdown
        if entry.state is MemberState.SUSPECT:
            total += DEFAULT_ROUTING.suspect_s
        if any(item.state is HoldingState.DRAINING for item in entry.record.holdings):
            total += DEFAULT_ROUTING.draining_s
    return total


def every_assignment(view: SwarmView, spec: ModelSpec) -> list[Path]:
    """All paths: for each layer any holder, neighbours on one node made one hop."""
    paths: list[tuple[Hop, ...]] = [()]
    for layer in range(spec.num_layers):
        grown: list[tuple[Hop, ...]] = []
        for path in paths:
            for entry in view.members:
                if not any(layer in item for item in entry.record.ready(spec.id)):
                    continue
                node = entry.record.node
                if path and path[-1].node == node:
                    last = Hop(node, LayerRange(path[-1].layers.start, layer + 1))
                    grown.append((*path[:-1], last))
                else:
                    grown.append((*path, Hop(node, LayerRange(layer, layer + 1))))
        paths = grown
    return paths


def assert_valid(view: SwarmView, spec: ModelSpec, path: Path) -> None:
    position = 0
    for hop in path:
        assert hop.layers.start == position
        position = hop.layers.stop
        (entry,) = [item for item in view.members if item.record.node == hop.node]
        assert any(item.covers(hop.layers) for item in entry.record.ready(spec.id))
    assert position == spec.num_layers
    assert all(left.node != right.node for left, right in pairwise(path))


@st.composite
def covered_swarms(draw: st.DrawFn) -> tuple[SwarmView, ModelSpec]:
    layers = draw(st.integers(1, 5))
    spec = model(layers, head=draw(st.integers(0, 3_000)), embedding=500)
    count = draw(st.integers(1, 4))
    members = []
    for number in range(count):
        start = draw(st.integers(0, layers - 1))
        stop = draw(st.integers(start + 1, layers))
        held = [holding(start, stop, draw(st.sampled_from(list(HoldingState))))]
        if start > 0 and draw(st.booleans()):
            held.append(holding(0, start))
        members.append(
            member(
                record(
                    node_id(number),
                    speed=draw(st.sampled_from([10_000, 100_000, 1_000_000])),
                    holdings=tuple(held),
                ),
                draw(st.sampled_from([MemberState.ALIVE, MemberState.SUSPECT])),
                queue_steps=draw(st.integers(0, 3)),
                sessions=draw(st.integers(0, 3)),
                tokens_per_s=draw(st.sampled_from([0.0, 5.0])),
            )
        )
    members.append(member(record(node_id(99), speed=5_000, holdings=(holding(0, layers),))))
    round_trips = {
        item.record.node: draw(st.sampled_from([0.001, 0.02, 0.3]))
        for item in members
        if draw(st.booleans())
    }
    return (
        view_of(*members, models=(spec,), self_id=node_id(0), round_trip_s=round_trips),
        spec,
    )


@given(covered_swarms())
@settings(max_examples=150, deadline=None)
def test_the_chosen_path_costs_no_more_than_any_other(case: tuple[SwarmView, ModelSpec]) -> None:
    view, spec = case
    path = choose_path(view, spec, random=Random(0))
    assert_valid(view, spec, path)
    best = min(cost_s(view, spec, other) for other in every_assignment(view, spec))
    assert cost_s(view, spec, path) == pytest.approx(best)


@given(covered_swarms(), st.sampled_from(list(RoutingPolicy)), st.integers(0, 1_000))
@settings(max_examples=100, deadline=None)
def test_every_policy_gives_a_valid_path_and_the_same_one_again(
    case: tuple[SwarmView, ModelSpec], policy: RoutingPolicy, seed: int
) -> None:
    view, spec = case
    first = choose_path(
        view, spec, policy=policy, random=Random(seed), prompt_tokens=900, new_tokens=50
    )
    again = choose_path(
        view, spec, policy=policy, random=Random(seed), prompt_tokens=900, new_tokens=50
    )
    assert_valid(view, spec, first)
    assert first == again


def test_missing_layers_are_named() -> None:
    spec = model(10)
    view = view_of(
        member(record(node_id(1), holdings=(holding(0, 3),))),
        member(record(node_id(2), holdings=(holding(5, 9), holding(9, 10, HoldingState.LOADING)))),
        models=(spec,),
    )
    assert missing_layers(view, spec) == (LayerRange(3, 5), LayerRange(9, 10))
    with pytest.raises(NoPathError, match="layers 3-4, 9 of test/model"):
        choose_path(view, spec, random=Random(0))


def test_dead_nodes_and_excluded_ones_are_not_used() -> None:
    spec = model(4)
    whole = (holding(0, 4),)
    view = view_of(
        member(record(node_id(1), holdings=whole), MemberState.DEAD),
        member(record(node_id(2), holdings=whole)),
        member(record(node_id(3), holdings=whole, speed=1_000)),
        models=(spec,),
    )
    assert [hop.node for hop in choose_path(view, spec, random=Random(0))] == [node_id(2)]
    path = choose_path(view, spec, random=Random(0), excluded=frozenset({node_id(2)}))
    assert [hop.node for hop in path] == [node_id(3)]
    with pytest.raises(NoPathError):
        choose_path(view, spec, random=Random(0), excluded=frozenset({node_id(2), node_id(3)}))


@pytest.mark.parametrize("policy", list(RoutingPolicy))
def test_blacklisted_and_leaving_nodes_are_the_last_resort(policy: RoutingPolicy) -> None:
    spec = model(4)
    view = view_of(
        member(record(node_id(1), holdings=(holding(0, 4),), speed=10**9)),
        member(record(node_id(2), holdings=(holding(0, 4),), speed=10**9, leaving=True)),
        member(record(node_id(3), holdings=(holding(0, 4),), speed=1_000)),
        models=(spec,),
        blacklisted=frozenset({node_id(1)}),
    )
    path = choose_path(view, spec, policy=policy, random=Random(0))
    assert [hop.node for hop in path] == [node_id(3)]
    path = choose_path(
        view, spec, policy=policy, random=Random(0), excluded=frozenset({node_id(3)})
    )
    assert path[0].node in (node_id(1), node_id(2))


def test_a_node_that_holds_both_ends_serves_both() -> None:
    spec = model(6)
    view = view_of(
        member(record(node_id(1), holdings=(holding(0, 2), holding(4, 6)))),
        member(record(node_id(2), holdings=(holding(2, 4),))),
        models=(spec,),
    )
    path = choose_path(view, spec, random=Random(0))
    assert [hop.node for hop in path] == [node_id(1), node_id(2), node_id(1)]


def test_neighbouring_ranges_of_a_node_are_one_hop() -> None:
    spec = model(6)
    view = view_of(
        member(record(node_id(1), holdings=(holding(0, 3), holding(3, 6, HoldingState.DRAINING)))),
        models=(spec,),
    )
    (hop,) = choose_path(view, spec, random=Random(0))
    assert hop.layers == spec.layers


def test_least_loaded_avoids_the_busy_node_even_where_it_is_faster() -> None:
    spec = model(4)
    view = view_of(
        member(record(node_id(1), holdings=(holding(0, 4),), speed=10**6), sessions=1),
        member(record(node_id(2), holdings=(holding(0, 4),), speed=10**5)),
        models=(spec,),
    )
    quick = choose_path(view, spec, random=Random(0))
    idle = choose_path(view, spec, policy=RoutingPolicy.LEAST_LOADED, random=Random(0))
    assert quick[0].node == node_id(1)
    assert idle[0].node == node_id(2)


def test_completion_time_weighs_the_answer_where_latency_weighs_one_token() -> None:
    """A queue ahead is paid once: worth it for a long answer, not for a single token."""
    spec = model(4, parameters=100_000)
    fast = member(
        record(node_id(1), holdings=(holding(0, 4),), speed=10**7),
        queue_steps=10,
        tokens_per_s=20.0,
    )
    slow = member(record(node_id(2), holdings=(holding(0, 4),), speed=2 * 10**6))
    view = view_of(fast, slow, models=(spec,))
    latency = choose_path(view, spec, random=Random(0), new_tokens=200)
    completion = choose_path(
        view,
        spec,
        policy=RoutingPolicy.MIN_COMPLETION_TIME,
        random=Random(0),
        prompt_tokens=10,
        new_tokens=200,
    )
    assert latency[0].node == node_id(2)
    assert completion[0].node == node_id(1)


def test_the_random_policy_spreads_requests() -> None:
    spec = model(4)
    view = view_of(
        *(member(record(node_id(n), holdings=(holding(0, 4),))) for n in range(3)), models=(spec,)
    )
    random = Random(1)
    used = {
        choose_path(view, spec, policy=RoutingPolicy.RANDOM, random=random)[0].node
        for _ in range(50)
    }
    assert len(used) == 3


def test_a_node_without_room_for_the_cache_is_gone_around() -> None:
    spec = model(4, kv_elements=10)
    view = view_of(
        member(record(node_id(1), holdings=(holding(0, 4),), speed=10**7), kv_free_bytes=3_000),
        member(record(node_id(2), holdings=(holding(0, 4),), speed=10**5)),
        models=(spec,),
    )
    small = choose_path(view, spec, random=Random(0), prompt_tokens=50, new_tokens=25)
    large = choose_path(view, spec, random=Random(0), prompt_tokens=50, new_tokens=26)
    assert small[0].node == node_id(1)
    assert large[0].node == node_id(2)


def test_the_gateway_prefers_itself_among_equals() -> None:
    spec = model(4)
    nodes = [node_id(number) for number in range(5)]
    members = [member(record(node, holdings=(holding(0, 4),))) for node in nodes]
    for node in nodes:
        view = view_of(*members, models=(spec,), self_id=node)
        assert choose_path(view, spec, random=Random(0))[0].node == node
