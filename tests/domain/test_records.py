from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import LayerRun, ModelSpec
from p2pllm.domain.records import (
    Address,
    Holding,
    HoldingState,
    HybridTime,
    LoadRecord,
    Member,
    MemberState,
    NodeRecord,
    SwarmView,
)

MODEL, OTHER_MODEL = ModelId("m"), ModelId("n")
READY, LOADING, DRAINING = HoldingState.READY, HoldingState.LOADING, HoldingState.DRAINING
SPEC = ModelSpec(MODEL, "builtin", "f", "X", (LayerRun(4, 1, 1),), 1, 1, 8, 16, 32)


def node(digit: str) -> NodeId:
    return NodeId(digit * 32)


def record(digit: str, *holdings: Holding, leaving: bool = False) -> NodeRecord:
    return NodeRecord(
        node=node(digit),
        incarnation=1,
        version=1,
        name=digit,
        addresses=(Address("10.0.0.1", 7770),),
        api=None,
        memory_bytes=2**30,
        layers_max=None,
        parameter_bytes=2,
        speed_bytes_s=10**9,
        holdings=holdings,
        leaving=leaving,
    )


def held(start: int, stop: int, state: HoldingState, model: ModelId = MODEL) -> Holding:
    return Holding(model, LayerRange(start, stop), state)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("10.0.0.1", "10.0.0.1:7770"), ("nas.local", "nas.local:7770"), ("fe80::1", "[fe80::1]:7770")],
)
def test_an_address_is_shown_as_people_write_it(host: str, shown: str) -> None:
    assert str(Address(host, 7770)) == shown


def test_what_is_draining_still_answers_and_what_is_loading_does_not_yet() -> None:
    holder = record("a", held(0, 2, READY), held(2, 4, DRAINING), held(6, 8, LOADING))
    assert holder.ready(MODEL) == (LayerRange(0, 4),)


def test_only_the_layers_of_the_model_in_question_are_ready() -> None:
    holder = record("a", held(0, 2, READY), held(2, 4, READY, OTHER_MODEL))
    assert holder.ready(MODEL) == (LayerRange(0, 2),)
    assert holder.ready(ModelId("unknown")) == ()


def test_both_ends_of_a_wrapping_window_are_ready_in_order() -> None:
    holder = record("a", held(6, 8, READY), held(0, 2, READY))
    assert holder.ready(MODEL) == (LayerRange(0, 2), LayerRange(6, 8))


def test_a_higher_incarnation_is_newer_whatever_the_version() -> None:
    one = record("a")
    assert replace(one, incarnation=2, version=0).stamp > replace(one, version=99).stamp
    assert replace(one, version=2).stamp > one.stamp
    assert (
        LoadRecord(one.node, 2, 1, 0, 0, 0, 0.0).stamp
        > LoadRecord(one.node, 1, 9, 0, 0, 0, 0.0).stamp
    )


def test_hybrid_times_are_ordered_by_wall_time_then_counter_then_writer() -> None:
    stamps = [
        HybridTime(1, 9, node("f")),
        HybridTime(2, 0, node("f")),
        HybridTime(2, 1, node("a")),
        HybridTime(2, 1, node("b")),
    ]
    assert sorted(set(stamps)) == stamps


def test_of_two_claims_the_worse_one_is_higher() -> None:
    states = [MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT]
    assert sorted(MemberState) == states


def view(*members: Member) -> SwarmView:
    return SwarmView(self_id=node("a"), members=members, models=(SPEC,))


def test_suspects_may_be_given_work_and_the_dead_and_the_leaving_may_not() -> None:
    alive = Member(record("a"), MemberState.ALIVE)
    suspect = Member(record("b"), MemberState.SUSPECT)
    swarm = view(
        alive,
        suspect,
        Member(record("c"), MemberState.DEAD),
        Member(record("d"), MemberState.LEFT),
        Member(record("e", leaving=True), MemberState.ALIVE),
    )
    assert swarm.usable() == (alive, suspect)


def test_a_blacklisted_member_stays_usable_since_routing_decides_about_it() -> None:
    member = Member(record("b"), MemberState.ALIVE)
    swarm = replace(view(member), blacklisted=frozenset({node("b")}))
    assert swarm.usable() == (member,)


def test_a_view_knows_the_models_that_are_served() -> None:
    assert view().model(MODEL) is SPEC
    assert view().model(OTHER_MODEL) is None


def test_two_views_do_not_share_what_they_measured() -> None:
    one, other = view(), view()
    one.round_trip_s[node("b")] = 0.1
    assert other.round_trip_s == {}
