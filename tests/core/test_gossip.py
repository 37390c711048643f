from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core import gossip
from p2pllm.core.effects import Effect, SendDatagram
from p2pllm.core.gossip import (
    FACT,
    LOAD,
    NODE,
    SOURCES_MAX,
    Broadcasts,
    Dissemination,
    GossipConfig,
    estimated_size,
)
from p2pllm.core.timers import TimerKey
from p2pllm.domain.gossip import (
    HEADLINES_MAX,
    Bodies,
    FactHeadline,
    Gossip,
    Headline,
    News,
    Pull,
    SignedBody,
    SyncDigest,
    SyncEntries,
)
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.records import Address, HybridTime, LoadRecord, MemberState, ModelFact
from sim.swarms import PlainSigner, address_of, datagram_size, node_id, own_record

SIGN = PlainSigner()
THERE = address_of(1)


class Shelf:
    """Knows `nodes` nodes in version 1, and model facts by name."""

    def __init__(self, nodes: int = 0, peers: int = 3) -> None:
        self.versions = {node_id(i): 1 for i in range(nodes)}
        self.states: dict[NodeId, MemberState] = {}
        self.models: list[str] = []
        self.peers = peers

    def headline(self, node: NodeId, now: float) -> Headline | None:
        version = self.versions.get(node)
        state = self.states.get(node, MemberState.ALIVE)
        return None if version is None else Headline(node, 1, version, 0, state)

    def fact_headline(self, model: ModelId) -> FactHeadline | None:
        return FactHeadline(model, HybridTime(1, 0, node_id(0))) if model in self.models else None

    def body(self, key: TimerKey) -> SignedBody | None:
        kind, name = key
        if kind == NODE:
            numbers = [i for i in range(len(self.versions)) if node_id(i) == name]
            return SIGN.node(own_record(numbers[0], 1)) if numbers else None
        if kind == LOAD:
            return SIGN.load(LoadRecord(NodeId(name), 1, 1, 0, 0, 0, 0.0))
        stamp = HybridTime(1, 0, node_id(0))
        return SIGN.fact(ModelFact(ModelId(name), stamp, None)) if name in self.models else None

    def some_addresses(self, count: int) -> list[Address]:
        return [address_of(100 + i) for i in range(min(count, self.peers))]

    def size(self) -> int:
        return self.peers + 1


def talking(shelf: Shelf, **config: int) -> Dissemination:
    chosen = GossipConfig(sync_first_s=5.0, **config)
    machine = Dissemination(shelf, config=chosen, size_of=estimated_size)
    for node, version in shelf.versions.items():
        machine.announce((NODE, node), str(version), 0.0)
    for model in shelf.models:
        machine.announce((FACT, model), "1", 0.0)
    machine.check()
    return machine


def messages(effects: list[Effect]) -> list[object]:
    for effect in effects:
        assert isinstance(effect, SendDatagram)
        datagram_size(effect.message)
    return [effect.message for effect in effects if isinstance(effect, SendDatagram)]


def silence(machine: Dissemination) -> list[object]:
    """All that is said until only anti-entropy is left."""
    said: list[object] = []
    while (now := machine.deadline()) is not None and now < 5.0:
        said += messages(machine.fire(now))
        machine.check()
    return said


@settings(max_examples=40)
@given(st.integers(0, 60), st.integers(1, 200))
def test_every_headline_is_told_just_as_often_as_it_should(nodes: int, peers: int) -> None:
    shelf = Shelf(nodes, peers)
    said = silence(talking(shelf))
    counts = dict.fromkeys(shelf.versions, 0)
    for message in said:
        assert isinstance(message, Gossip)
        assert len({item.node for item in message.news.members}) == len(message.news.members)
        for item in message.news.members:
            counts[item.node] += 1
    limit = 4 if peers + 2 <= 10 else 8 if peers + 2 <= 100 else 12
    assert set(counts.values()) <= {limit}


def test_alone_nothing_is_said() -> None:
    machine = talking(Shelf(3, peers=0))
    assert machine.deadline() is None


def test_the_least_told_goes_first() -> None:
    queue = Broadcasts()
    queue.add((NODE, "old"))
    queue.take(3, lambda key: True)
    queue.add((NODE, "new"))
    order: list[str] = []

    def note(key: TimerKey) -> bool:
        order.append(key[1])
        return True

    queue.take(3, note)
    queue.check()
    assert order == ["new", "old"]
    queue.take(3, lambda key: False)
    queue.take(3, lambda key: None)
    assert len(queue) == 0


def test_what_is_no_longer_known_is_not_told() -> None:
    shelf = Shelf(2)
    machine = talking(shelf)
    machine.announce((NODE, node_id(0)), None, 0.0)
    del shelf.versions[node_id(1)]
    assert machine.take(None, 0.0) == News()
    machine.check()


def test_what_is_held_against_the_target_stands_first_and_once() -> None:
    shelf = Shelf(3)
    machine = talking(shelf)
    first = shelf.headline(node_id(2), 0.0)
    news = machine.take(first, 0.0)
    assert [item.node for item in news.members] == [node_id(2), node_id(0), node_id(1)]


def test_messages_are_filled_but_never_over_full() -> None:
    shelf = Shelf(100)
    shelf.models = [f"{'x' * 100}{i}" for i in range(30)]
    machine = talking(shelf)
    news = machine.take(None, 0.0)
    assert 15 < len(news.members) <= HEADLINES_MAX
    keys = [(NODE, node) for node in shelf.versions] + [(FACT, model) for model in shelf.models]
    told = messages(machine.tell(THERE, [*keys, (NODE, "nobody")], 0.0))
    assert sum(len(m.news.members) for m in told if isinstance(m, Gossip)) == 100
    assert sum(len(m.news.facts) for m in told if isinstance(m, Gossip)) == 30


def test_small_headlines_are_limited_by_number() -> None:
    shelf = Shelf(HEADLINES_MAX + 9)
    machine = Dissemination(shelf, config=GossipConfig(), size_of=lambda item: 1)
    for node in shelf.versions:
        machine.announce((NODE, node), "1", 0.0)
    assert len(machine.take(None, 0.0).members) == HEADLINES_MAX


# -- pulling


def test_a_body_is_asked_for_until_it_comes_each_time_of_another_source() -> None:
    machine = talking(Shelf())
    key = (NODE, node_id(1))
    assert machine.want(key, address_of(1))
    assert not machine.want(key, address_of(2))
    asked = [e.address for e in machine.ask(0.0) if isinstance(e, SendDatagram)]
    while len(asked) < 3:
        now = machine.deadline()
        assert now is not None
        asked += [e.address for e in machine.fire(now) if isinstance(e, SendDatagram)]
        machine.check()
    assert asked == [address_of(2), address_of(1), address_of(2)]
    machine.got(key)
    machine.got(key)
    assert machine.deadline() is None


def test_a_body_nobody_sends_is_given_up() -> None:
    machine = talking(Shelf())
    machine.want((LOAD, node_id(1)), THERE)
    asked = len(machine.ask(0.0))
    while (now := machine.deadline()) is not None:
        asked += len(machine.fire(now))
        machine.check()
    assert asked == GossipConfig().pull_attempts


def test_sources_and_wants_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip, "WANTS_MAX", 1)
    machine = talking(Shelf())
    for number in [*range(SOURCES_MAX + 5), 3]:
        machine.want((NODE, "a"), address_of(number))
    assert not machine.want((NODE, "b"), THERE)
    machine.check()


def test_only_so_many_bodies_are_asked_for_at_a_time() -> None:
    machine = talking(Shelf(), pulls_max=40)
    for number in range(100):
        machine.want((NODE, node_id(number)), THERE)
    pulls = messages(machine.ask(0.0))
    assert [len(m.records) for m in pulls if isinstance(m, Pull)] == [32, 8]
    assert machine.ask(0.0) == []
    for number in range(40):
        machine.got((NODE, node_id(number)))
    assert sum(len(m.records) for m in messages(machine.ask(0.1)) if isinstance(m, Pull)) == 40
    machine.stop()
    machine.check()


def test_long_names_are_pulled_in_several_datagrams() -> None:
    machine = talking(Shelf())
    for number in range(30):
        machine.want((FACT, f"{'x' * 120}{number}"), THERE)
    assert len(messages(machine.ask(0.0))) > 2


def test_a_pull_is_answered_with_what_there_is_and_who_is_not_alive() -> None:
    shelf = Shelf(3)
    shelf.models = ["m"]
    shelf.states[node_id(1)] = MemberState.DEAD
    machine = talking(shelf)
    everyone = tuple(node_id(i) for i in range(5))
    pull = Pull(records=everyone + everyone, loads=everyone[:2], facts=(ModelId("m"), ModelId("n")))
    bodies = [m for m in messages(machine.pulled(THERE, pull, 0.0)) if isinstance(m, Bodies)]
    assert [r.value.node for m in bodies for r in m.records] == list(everyone[:3])
    assert [r.value.node for m in bodies for r in m.loads] == list(everyone[:2])
    assert [r.value.model for m in bodies for r in m.facts] == ["m"]
    assert [h.node for m in bodies for h in m.news.members] == [node_id(1)]
    assert machine.pulled(THERE, Pull(records=(node_id(9),)), 0.0) == []


# -- anti-entropy


def test_equal_nodes_have_nothing_to_compare() -> None:
    one, two = talking(Shelf(20)), talking(Shelf(20))
    digest = messages(one.sync_with(THERE))[0]
    assert isinstance(digest, SyncDigest)
    assert two.digest(THERE, digest, 0.0) == []


@settings(max_examples=30)
@given(
    st.dictionaries(st.integers(0, 200), st.integers(1, 3), max_size=120),
    st.dictionaries(st.integers(0, 200), st.integers(1, 3), max_size=120),
)
def test_after_a_comparison_both_know_what_they_lack(
    ours: dict[int, int], theirs: dict[int, int]
) -> None:
    left, right = Shelf(), Shelf()
    left.versions = {node_id(i): version for i, version in ours.items()}
    right.versions = {node_id(i): version for i, version in theirs.items()}
    left.models, right.models = ["a", "b"], ["b", "c"]
    one, two = talking(left), talking(right)
    digest = messages(one.sync_with(THERE))[0]
    assert isinstance(digest, SyncDigest)
    told_left: dict[NodeId, int] = {}
    told_right: dict[NodeId, int] = {}
    for entries in messages(two.digest(THERE, digest, 0.123)):
        assert isinstance(entries, SyncEntries)
        told_left.update({item.node: item.version for item in entries.news.members})
        for answer in messages(one.tell(THERE, one.lacking(entries, 0.0), 0.0)):
            assert isinstance(answer, Gossip)
            told_right.update({item.node: item.version for item in answer.news.members})
    for node, version in right.versions.items():
        if version > left.versions.get(node, 0):
            assert told_left[node] == version
    for node, version in left.versions.items():
        if version > right.versions.get(node, 0):
            assert told_right[node] == version


def test_the_answer_to_a_digest_is_bounded() -> None:
    machine = talking(Shelf(2_000), sync_datagrams_max=4)
    assert len(messages(machine.digest(THERE, SyncDigest(bytes(1_024)), 0.0))) <= 5


def test_now_and_then_a_random_peer_is_asked_to_compare() -> None:
    machine = talking(Shelf(1))
    silence(machine)
    for turn in range(1, 4):
        assert machine.deadline() == 5.0 * turn
        assert isinstance(messages(machine.fire(5.0 * turn))[0], SyncDigest)
    machine.stop()
    assert machine.deadline() is None


def test_a_newcomer_compares_often_at_first() -> None:
    shelf = Shelf()
    machine = Dissemination(shelf, config=GossipConfig(), size_of=estimated_size)
    machine.wake(0.0)
    times: list[float] = []
    for _ in range(6):
        now = machine.deadline()
        assert now is not None
        times.append(now)
        machine.fire(now)
    assert times == [0.5, 1.5, 3.5, 7.5, 12.5, 17.5]


@pytest.mark.parametrize("value", [0, 127, 128, 255, 256, 65_535, 65_536, 2**32, 2**62])
def test_the_estimate_of_an_integer_is_what_msgpack_takes_at_most(value: int) -> None:
    import msgpack

    headline = Headline(node_id(0), value, 0, 0, MemberState.ALIVE)
    plain = Headline(node_id(0), 0, 0, 0, MemberState.ALIVE)
    packed = len(msgpack.packb(value))
    assert estimated_size(headline) - estimated_size(plain) == packed - 1
