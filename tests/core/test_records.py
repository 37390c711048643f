from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core import records
from p2pllm.core.records import CLOCK_AHEAD_MAX_MS, HybridClock, Merge, RecordStore
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.models import LayerRun, ModelSpec
from p2pllm.domain.records import INCARNATION_MAX, HybridTime, LoadRecord, ModelFact
from sim.swarms import PlainSigner, node_id, own_record

SIGN = PlainSigner()


def record(incarnation: int = 1, version: int = 1, memory: int = 0, number: int = 0):
    base = own_record(number, incarnation)
    return SIGN.node(replace(base, version=version, memory_bytes=memory))


def load(incarnation: int = 1, version: int = 1, queue: int = 0):
    return SIGN.load(LoadRecord(node_id(0), incarnation, version, queue, 0, 0, 0.0))


def spec(name: str = "m") -> ModelSpec:
    return ModelSpec(ModelId(name), name, "f" * 32, "X", (LayerRun(2, 10, 4),), 1, 1, 8, 64, 100)


def fact(wall_ms: int, name: str = "m", served: bool = True, writer: int = 0):
    stamp = HybridTime(wall_ms, 0, node_id(writer))
    return SIGN.fact(ModelFact(ModelId(name), stamp, spec(name) if served else None))


def test_the_newer_stamp_holds_whatever_the_order_of_arrival() -> None:
    store = RecordStore(10)
    assert store.merge_node(record(2, 1)) is Merge.STORED
    assert store.merge_node(record(1, 9)) is Merge.OLDER
    assert store.merge_node(record(2, 1)) is Merge.KNOWN
    assert store.merge_node(record(2, 2)) is Merge.STORED
    assert store.stamp(node_id(0)) == (2, 2)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12), st.randoms())
def test_merging_the_same_records_in_any_order_gives_the_same_store(
    stamps: list[tuple[int, int]], shuffle: random.Random
) -> None:
    one, other = RecordStore(10), RecordStore(10)
    for stamp in stamps:
        one.merge_node(record(*stamp))
        one.check()
    shuffle.shuffle(stamps)
    for stamp in stamps:
        other.merge_node(record(*stamp))
    assert one.node(node_id(0)) == other.node(node_id(0))


def test_two_payloads_under_one_stamp_are_flagged_and_the_first_is_kept() -> None:
    store = RecordStore(10)
    first = record(memory=1)
    store.merge_node(first)
    assert store.merge_node(record(memory=2)) is Merge.EQUIVOCATION
    assert store.node(node_id(0)) is first
    assert store.equivocators == (node_id(0),)


def test_flags_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "EQUIVOCATORS_MAX", 0)
    store = RecordStore(10)
    store.merge_node(record(memory=1))
    assert store.merge_node(record(memory=2)) is Merge.EQUIVOCATION
    assert store.equivocators == ()


def test_an_incarnation_beyond_the_bound_is_refused() -> None:
    store = RecordStore(10)
    assert store.merge_node(record(INCARNATION_MAX + 1)) is Merge.REFUSED
    assert store.merge_node(record(INCARNATION_MAX)) is Merge.STORED


def test_a_full_store_refuses_further_owners_but_not_updates() -> None:
    store = RecordStore(1)
    store.merge_node(record())
    assert store.merge_node(record(number=1)) is Merge.REFUSED
    assert store.merge_node(record(version=2)) is Merge.STORED
    assert list(store) == [node_id(0)]
    assert len(store) == 1


def test_a_load_belongs_to_its_owners_incarnation() -> None:
    store = RecordStore(10)
    assert store.merge_load(load()) is Merge.REFUSED
    store.merge_node(record(2))
    assert store.merge_load(load(3)) is Merge.REFUSED
    assert store.merge_load(load(1)) is Merge.OLDER
    assert store.merge_load(load(2, 2)) is Merge.STORED
    assert store.merge_load(load(2, 1)) is Merge.OLDER
    assert store.merge_load(load(2, 2)) is Merge.KNOWN
    assert store.merge_load(load(2, 2, queue=7)) is Merge.EQUIVOCATION
    assert store.load_version(node_id(0)) == 2
    store.merge_node(record(3))
    assert store.load(node_id(0)) is None
    assert store.load_version(node_id(0)) == 0
    store.check()


def test_the_higher_fact_holds_and_a_removal_is_one() -> None:
    store = RecordStore(10)
    assert store.merge_fact(fact(5), None) is Merge.STORED
    assert store.models() == (spec(),)
    assert store.merge_fact(fact(4, served=False), None) is Merge.OLDER
    assert store.merge_fact(fact(5), None) is Merge.KNOWN
    assert store.merge_fact(fact(5, served=False), None) is Merge.EQUIVOCATION
    assert store.merge_fact(fact(6, served=False), None) is Merge.STORED
    assert store.models() == ()
    assert [item.value.spec for item in store.facts()] == [None]


def test_a_fact_from_the_far_future_is_refused() -> None:
    store = RecordStore(10)
    assert store.merge_fact(fact(CLOCK_AHEAD_MAX_MS + 1), 0) is Merge.REFUSED
    assert store.merge_fact(fact(CLOCK_AHEAD_MAX_MS), 0) is Merge.STORED


def test_a_fact_about_another_model_than_its_spec_is_refused() -> None:
    store = RecordStore(10)
    bad = ModelFact(ModelId("other"), HybridTime(1, 0, node_id(0)), spec("m"))
    assert store.merge_fact(SIGN.fact(bad), None) is Merge.REFUSED


def test_full_facts_make_room_by_forgetting_the_oldest_removal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "FACTS_MAX", 2)
    store = RecordStore(10)
    store.merge_fact(fact(1, "a"), None)
    assert store.make_room() is None
    store.merge_fact(fact(2, "b"), None)
    assert store.make_room() is None
    assert store.merge_fact(fact(3, "c"), None) is Merge.REFUSED
    store.merge_fact(fact(4, "a", served=False), None)
    assert store.make_room() == "a"
    assert store.merge_fact(fact(5, "c"), None) is Merge.STORED


def test_forgetting_drops_record_and_load() -> None:
    store = RecordStore(10)
    store.merge_node(record())
    store.merge_load(load())
    store.forget(node_id(0))
    store.forget(node_id(0))
    assert store.stamp(node_id(0)) is None
    assert store.load(node_id(0)) is None


@settings(max_examples=50)
@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=30), st.integers(0, 50))
def test_the_hybrid_clock_only_rises(steps: list[int | None], wall_ms: int) -> None:
    clock = HybridClock(NodeId("a"))
    last = clock.tick(wall_ms)
    for step in steps:
        if step is None:
            stamp = clock.tick(wall_ms)
            assert stamp > last
            last = stamp
        else:
            seen = HybridTime(step, step, NodeId("b"))
            clock.seen(seen)
            stamp = clock.tick(wall_ms)
            assert stamp > last
            assert stamp > seen
            last = stamp
