from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core.effects import Effect, Notify, SendDatagram, SendStream
from p2pllm.core.membership import (
    RELAYS_MAX,
    STREAM_ONLY_WARNING,
    Membership,
    MembershipConfig,
)
from p2pllm.domain.gossip import Ack, Headline, Nack, News, Ping, PingRequest
from p2pllm.domain.ids import NodeId
from p2pllm.domain.messages import StreamProbeAck
from p2pllm.domain.records import MemberState
from sim.swarms import address_of, node_id, own_record

ME = node_id(0)


def watching(*numbers: int, config: MembershipConfig | None = None) -> Membership:
    machine = Membership(
        ME,
        config=config or MembershipConfig(),
        random=random.Random(1),
        news=lambda node, now: News(),
    )
    for number in numbers:
        machine.learn(own_record(number, 1), 0.0)
    machine.drain_changes()
    return machine


def step(machine: Membership) -> tuple[float, list[Effect]]:
    now = machine.deadline()
    assert now is not None
    effects = machine.fire(now)
    machine.check()
    return now, effects


def probed(machine: Membership) -> tuple[float, NodeId, int]:
    """Let time pass until a probe starts: when, of whom, with which sequence."""
    while True:
        now, effects = step(machine)
        for effect in effects:
            if isinstance(effect, SendDatagram) and isinstance(effect.message, Ping):
                assert effect.message.target is not None
                return now, effect.message.target, effect.message.sequence


def sent(effects: list[Effect], kind: type) -> list[SendDatagram]:
    return [e for e in effects if isinstance(e, SendDatagram) and isinstance(e.message, kind)]


def claim(number: int, state: MemberState, accuser: int | None = None) -> Headline:
    return Headline(node_id(number), 1, 1, 0, state, None if accuser is None else node_id(accuser))


def test_alone_there_is_nothing_to_do() -> None:
    assert watching().deadline() is None


def test_every_member_is_probed_once_per_round() -> None:
    machine = watching(1, 2, 3, 4)
    for _ in range(3):
        targets: list[NodeId] = []
        for _ in range(4):
            now, target, sequence = probed(machine)
            targets.append(target)
            assert machine.ack(target, Ack(sequence), now + 0.01) == []
        assert sorted(targets) == sorted(map(node_id, range(1, 5)))


def test_an_ack_gives_the_round_trip_and_a_notable_change_is_made_known() -> None:
    machine = watching(1)
    now, target, sequence = probed(machine)
    machine.ack(target, Ack(sequence), now + 0.010)
    assert machine.drain_measured() == [target]
    now, target, sequence = probed(machine)
    machine.ack(target, Ack(sequence), now + 0.0101)
    assert machine.drain_measured() == []
    now, target, sequence = probed(machine)
    machine.ack(target, Ack(sequence), now + 0.2)
    assert machine.drain_measured() == [target]


def test_a_silent_one_is_asked_for_by_helpers_and_stream_then_suspected_then_dead() -> None:
    machine = watching(1, 2, 3, 4, 5)
    began, target, _ = probed(machine)
    now, effects = step(machine)
    assert now == began + 0.5
    assert len(sent(effects, PingRequest)) == 3
    assert len(sent(effects, Ping)) == 1
    assert any(isinstance(e, SendStream) and e.node == target for e in effects)
    now, effects = step(machine)
    assert now == began + 1.0
    assert machine.state(target) is MemberState.SUSPECT
    assert machine.awareness == 3
    while machine.state(target) is MemberState.SUSPECT:
        now, effects = step(machine)
        for item in sent(effects, Ping):
            assert isinstance(item.message, Ping)
            if item.message.target not in (None, target):
                machine.ack(item.message.target, Ack(item.message.sequence), now)
    assert machine.state(target) is MemberState.DEAD
    assert target not in machine.live


def test_helpers_that_nack_show_that_the_fault_is_not_here() -> None:
    machine = watching(1, 2, 3, 4, 5)
    _, target, sequence = probed(machine)
    _, effects = step(machine)
    addresses = [item.address for item in sent(effects, PingRequest)]
    for number in range(1, 6):
        if address_of(number) in addresses:
            for _ in range(2):
                assert machine.nack(node_id(number), Nack(sequence)) == []
    machine.nack(node_id(9), Nack(sequence))
    machine.nack(target, Nack(sequence + 1))
    step(machine)
    assert machine.state(target) is MemberState.SUSPECT
    assert machine.awareness == 0


def test_a_helpers_ack_saves_the_target() -> None:
    machine = watching(1, 2)
    now, target, sequence = probed(machine)
    _, _ = step(machine)
    machine.ack(node_id(7), Ack(sequence), now + 0.6)
    helper = (
        node_id(3)
        if target not in (node_id(1), node_id(2))
        else node_id(2 if target == node_id(1) else 1)
    )
    machine.ack(helper, Ack(sequence), now + 0.6)
    machine.ack(target, Ack(sequence), now + 0.7)
    machine.check()
    assert machine.state(target) is MemberState.ALIVE
    probed(machine)
    assert machine.state(target) is MemberState.ALIVE


def test_one_that_only_streams_reach_stays_alive_and_is_reported_once() -> None:
    machine = watching(1)
    notices: list[Effect] = []
    for _ in range(STREAM_ONLY_WARNING + 2):
        now, target, sequence = probed(machine)
        step(machine)
        notices += machine.stream_probe_ack(node_id(5), StreamProbeAck(sequence), now + 0.6)
        notices += machine.stream_probe_ack(target, StreamProbeAck(sequence), now + 0.6)
    assert [e.event for e in notices if isinstance(e, Notify)] == ["datagrams_blocked"]
    assert machine.state(node_id(1)) is MemberState.ALIVE


def test_a_probe_of_one_that_leaves_meanwhile_accuses_nobody() -> None:
    machine = watching()
    machine.learn(replace(own_record(1, 1), leaving=True), 0.0)
    probed(machine)
    step(machine)
    machine.claim(claim(1, MemberState.LEFT), node_id(2), 1.0)
    step(machine)
    assert machine.state(node_id(1)) is MemberState.LEFT


def test_pings_for_others_are_relayed_and_their_answer_too() -> None:
    machine = watching(1)
    effects = machine.ping_request(address_of(5), PingRequest(77, node_id(1)), 0.0)
    ping = sent(effects, Ping)[0]
    assert ping.address == address_of(1)
    assert isinstance(ping.message, Ping)
    assert machine.ack(node_id(9), Ack(ping.message.sequence), 0.1) == []
    effects = machine.ack(node_id(1), Ack(ping.message.sequence), 0.1)
    assert effects == [SendDatagram(address_of(5), Ack(77))]


def test_a_relayed_ping_without_answer_becomes_a_nack() -> None:
    machine = watching(1)
    machine.ping_request(address_of(5), PingRequest(77, node_id(1)), 0.0)
    found: list[SendDatagram] = []
    while not found:
        found = sent(step(machine)[1], Nack)
    assert found == [SendDatagram(address_of(5), Nack(77))]


def test_unknown_targets_and_too_many_relays_are_nacked_at_once() -> None:
    machine = watching(1)
    nack = [SendDatagram(address_of(5), Nack(77))]
    assert machine.ping_request(address_of(5), PingRequest(77, node_id(8)), 0.0) == nack
    for _ in range(RELAYS_MAX):
        machine.ping_request(address_of(5), PingRequest(77, node_id(1)), 0.0)
    assert machine.ping_request(address_of(5), PingRequest(77, node_id(1)), 0.0) == nack
    machine.check()


def test_a_ping_meant_for_another_is_not_answered() -> None:
    machine = watching(1)
    assert machine.ping(node_id(1), address_of(1), Ping(1, node_id(9)), 0.0) == []
    assert len(machine.ping(node_id(1), address_of(1), Ping(1, None), 0.0)) == 1
    assert len(machine.ping(node_id(1), address_of(1), Ping(1, ME), 0.0)) == 1


def test_confirmations_bring_the_death_forward_but_never_into_the_past() -> None:
    machine = watching(*range(1, 10))
    machine.claim(claim(1, MemberState.SUSPECT, 2), node_id(2), 0.0)
    machine.claim(claim(1, MemberState.SUSPECT, 2), node_id(3), 0.0)
    assert machine.drain_changes() == [node_id(1)]
    machine.claim(claim(1, MemberState.SUSPECT, 3), node_id(3), 9.0)
    machine.claim(claim(1, MemberState.SUSPECT), node_id(4), 9.0)
    assert machine.drain_changes() == [node_id(1)]
    machine.check()
    machine.fire(9.0)
    assert machine.state(node_id(1)) is MemberState.DEAD


def test_a_death_told_by_others_counts_once_the_suspicion_is_old_enough() -> None:
    machine = watching(*range(1, 10))
    machine.claim(claim(1, MemberState.DEAD), node_id(2), 0.0)
    machine.claim(claim(1, MemberState.DEAD), node_id(2), 0.5)
    assert machine.state(node_id(1)) is MemberState.SUSPECT
    machine.claim(claim(1, MemberState.DEAD), node_id(2), 3.0)
    assert machine.state(node_id(1)) is MemberState.DEAD
    assert machine.claim(claim(1, MemberState.SUSPECT), node_id(3), 3.0) == []
    assert machine.claim(claim(2, MemberState.ALIVE), node_id(3), 3.0) == []


def test_a_newer_version_does_not_clear_a_suspicion_but_a_higher_incarnation_does() -> None:
    machine = watching(1, 2)
    machine.claim(claim(1, MemberState.SUSPECT), node_id(2), 0.0)
    machine.learn(replace(own_record(1, 1), version=2, addresses=(address_of(9),)), 0.1)
    assert machine.state(node_id(1)) is MemberState.SUSPECT
    assert machine.address_of(node_id(1)) == address_of(9)
    effects = machine.learn(own_record(1, 2), 0.2)
    assert [e.event for e in effects if isinstance(e, Notify)] == ["member_refuted"]
    assert machine.state(node_id(1)) is MemberState.ALIVE
    assert machine.learn(own_record(1, 3), 0.2) == []
    machine.check()


def test_the_dead_are_pinged_now_and_then_and_faster_when_all_are() -> None:
    machine = watching(1, config=MembershipConfig(reconnect_interval_s=5.0))
    machine.claim(claim(1, MemberState.SUSPECT), node_id(2), 0.0)
    while machine.state(node_id(1)) is not MemberState.DEAD:
        step(machine)
    times = [probed(machine)[0] for _ in range(3)]
    assert times[2] - times[1] == 1.0
    machine.learn(own_record(1, 2), 100.0)
    machine.check()
    assert machine.state(node_id(1)) is MemberState.ALIVE
    assert machine.size == 2


def test_members_without_an_address_are_probed_over_streams_only() -> None:
    machine = watching()
    machine.learn(replace(own_record(1, 1), addresses=()), 0.0)
    machine.learn(replace(own_record(2, 1), addresses=()), 0.0)
    effects: list[Effect] = []
    while not any(isinstance(e, Notify) and e.event == "member_died" for e in effects):
        effects += step(machine)[1]
    assert [e for e in effects if isinstance(e, SendDatagram)] == []
    assert [e for e in effects if isinstance(e, SendStream)] != []
    while machine.live:
        step(machine)
    for _ in range(4):
        assert step(machine)[1] == []


def test_a_pause_of_this_process_proves_nothing_about_others() -> None:
    machine = watching(1, 2, 3)
    machine.claim(claim(1, MemberState.SUSPECT), node_id(2), 0.0)
    began, _, _ = probed(machine)
    machine.resumed(30.0)
    machine.check()
    machine.fire(began + 30.0)
    assert machine.state(node_id(1)) is MemberState.SUSPECT
    assert machine.awareness == 1


def test_the_left_are_remembered_for_a_while_too() -> None:
    machine = watching(config=MembershipConfig(tombstone_s=10.0))
    machine.learn(replace(own_record(1, 1), leaving=True), 0.0)
    machine.claim(claim(1, MemberState.LEFT), node_id(1), 0.0)
    machine.fire(5.0)
    machine.check()
    peer = machine.peer(node_id(1))
    assert peer is not None
    assert not peer.shared
    machine.fire(10.0)
    assert machine.peer(node_id(1)) is None
    assert machine.drain_forgotten() == [node_id(1)]


def test_hints_help_only_where_nothing_better_is_known() -> None:
    machine = watching(1)
    machine.hint(node_id(1), address_of(1))
    assert machine.address_of(node_id(1)) == address_of(1)
    machine.hint(node_id(1), address_of(5))
    assert machine.address_of(node_id(1)) == address_of(5)
    machine.hint(node_id(1), address_of(6))
    assert machine.address_of(node_id(1)) == address_of(5)
    assert not machine.heard(node_id(9), address_of(9))
    assert machine.address_of(node_id(9)) is None


def test_being_accused_stretches_the_own_patience_up_to_a_bound() -> None:
    machine = watching(1)
    for _ in range(20):
        machine.was_accused()
    assert machine.awareness == MembershipConfig().awareness_max
    began, _, _ = probed(machine)
    now, _ = step(machine)
    while now < began + 4.5:
        now, _ = step(machine)
    assert now == began + 4.5


@settings(max_examples=60)
@given(st.data())
def test_the_invariants_hold_and_the_dead_stay_dead_whatever_comes(data: st.DataObject) -> None:
    machine = watching(1, 2, 3, config=MembershipConfig(tombstone_s=1_000.0))
    incarnations = {1: 1, 2: 1, 3: 1}
    now = 0.0
    for _ in range(data.draw(st.integers(0, 40))):
        before = {n: machine.peer(node_id(n)) for n in incarnations}
        gone = {n for n, peer in before.items() if peer is not None and not peer.is_live}
        number = data.draw(st.integers(1, 3))
        action = data.draw(st.integers(0, 4))
        revived = None
        if action == 0:
            state = data.draw(st.sampled_from(list(MemberState)))
            machine.claim(claim(number, state), node_id(data.draw(st.integers(1, 3))), now)
        elif action == 1:
            incarnations[number] += 1
            leaving = data.draw(st.booleans())
            machine.learn(replace(own_record(number, incarnations[number]), leaving=leaving), now)
            revived = number
        elif action == 2:
            machine.ack(node_id(number), Ack(data.draw(st.integers(1, 10))), now)
        elif action == 3:
            machine.resumed(data.draw(st.floats(0, 10)))
        else:
            now += data.draw(st.floats(0, 5))
            machine.fire(now)
        machine.check()
        for n in gone - {revived}:
            peer = machine.peer(node_id(n))
            assert peer is not None
            assert not peer.is_live
