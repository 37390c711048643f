from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core import records
from p2pllm.core.discovery import SEEDS_MAX
from p2pllm.core.effects import Notify, SendDatagram, SendStream
from p2pllm.core.events import DatagramReceived
from p2pllm.core.membership import MembershipConfig
from p2pllm.core.swarm import RECORD_BYTES_MAX, Load, Swarm, SwarmConfig
from p2pllm.domain.errors import ClientError, ModelNotFoundError
from p2pllm.domain.gossip import Bodies, Gossip, Headline, News, Ping, Pull, Signed
from p2pllm.domain.ids import ModelId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import StreamProbe, StreamProbeAck
from p2pllm.domain.models import LayerRun, ModelSpec
from p2pllm.domain.records import (
    COUNTER_MAX,
    INCARNATION_MAX,
    Holding,
    HoldingState,
    HybridTime,
    LoadRecord,
    MemberState,
    ModelFact,
    NodeRecord,
)
from sim.network import Link
from sim.swarms import (
    WALL_MS,
    Options,
    PlainSigner,
    SwarmWorld,
    address_of,
    node_id,
    own_record,
)


def settled(
    size: int, seed: int = 1, *, loss: float = 0.0, checks: bool = True, **config: object
) -> SwarmWorld:
    link = Link(loss=loss, duplication=0.02 if loss else 0.0, jitter_s=0.01 if loss else 0.0005)
    options = Options(link=link, checks=checks, config=SwarmConfig(**config))  # type: ignore[arg-type]
    world = SwarmWorld(size, seed, options)
    world.start_all()
    world.world.run_until(lambda: have_met(world), limit_s=60, step_s=0.1)
    return world


def have_met(world: SwarmWorld) -> bool:
    """Whether every running host holds all others for live, in whatever version.

    At heavy loss there is always some refutation under way, so equal versions everywhere at one
    moment would be asking for more than the protocol promises.
    """
    return all(
        sum(member.state <= MemberState.SUSPECT for member in host.machine.swarm.view().members)
        == len(world.running())
        for host in world.running()
        if host.machine is not None
    )


def knows_all(world: SwarmWorld) -> bool:
    """Whether every running host holds every running host's newest record, and none is dead."""
    newest = {host.node: host.machine.swarm.own for host in world.running() if host.machine}
    return all(
        host.machine is not None
        and all(host.machine.swarm.record_of(node) == record for node, record in newest.items())
        and all(
            member.state <= MemberState.SUSPECT
            for member in host.machine.swarm.view().members
            if member.record.node in newest
        )
        for host in world.running()
    )


def all_believe(world: SwarmWorld, subject: int, state: MemberState) -> bool:
    return all(
        world.state(host.number, subject) is state
        for host in world.running()
        if host.number != subject
    )


def deaths(world: SwarmWorld) -> list[tuple[float, int, Notify]]:
    return [entry for entry in world.world.notices if entry[2].event == "member_died"]


def spec(name: str = "m", width: int = 8) -> ModelSpec:
    runs = (LayerRun(2, 10, 4),)
    return ModelSpec(ModelId(name), name, "f" * 32, "X", runs, 1, 1, width, 64, 100)


def single(number: int = 0, incarnation: int = 1) -> Swarm:
    world = SwarmWorld(1, 0)
    return Swarm(
        own_record(number, incarnation),
        config=SwarmConfig(),
        sign=PlainSigner(),
        random=world.world.random("x"),
        now=0.0,
    )


def from_peer(number: int, message: object) -> DatagramReceived:
    return DatagramReceived(node_id(number), address_of(number), message)  # type: ignore[arg-type]


def introduced(swarm: Swarm, number: int, incarnation: int = 1, now: float = 0.0) -> None:
    record = PlainSigner().node(own_record(number, incarnation))
    swarm.receive(from_peer(number, Bodies(records=(record,))), now=now)


# -- convergence


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("size", [10, 30])
def test_all_who_start_at_once_soon_know_each_other(size: int, loss: float) -> None:
    world = settled(size, loss=loss, checks=size == 10)
    assert world.now < (3 if loss == 0 else 30)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 12), loss=st.sampled_from([0.0, 0.1, 0.3]))
def test_records_facts_and_loads_reach_everybody(seed: int, size: int, loss: float) -> None:
    world = settled(size, seed, loss=loss)
    world.act(0, lambda swarm: swarm.add_model(spec(), wall_ms=WALL_MS, now=world.now))
    world.act(1, lambda swarm: swarm.update_own(now=world.now, memory_bytes=5))
    world.act(1, lambda swarm: swarm.update_load(Load(7), now=world.now))

    def arrived() -> bool:
        views = [world.swarm(i).view() for i in range(size)]
        loads = [
            member.load.queue_steps if member.load else None
            for view in views
            for member in view.members
            if member.record.node == node_id(1)
        ]
        return (
            knows_all(world)
            and loads == [7] * size
            and all(view.models == (spec(),) for view in views)
        )

    assert world.world.run_until(arrived, limit_s=60, step_s=0.2) <= (2 if loss == 0 else 60)


def test_views_are_equal_once_all_is_quiet_and_carry_round_trips() -> None:
    world = settled(8)
    world.world.run(40)
    views = [world.swarm(i).view() for i in range(8)]
    assert all(view.members == views[0].members for view in views)
    assert len(views[0].round_trip_s) == 7
    assert all(0.0005 < trip < 0.01 for trip in views[0].round_trip_s.values())
    revision = world.swarm(0).revision
    assert world.swarm(0).view() is world.swarm(0).view()
    world.world.run(60)
    assert world.swarm(0).revision == revision


# -- death


def test_a_crash_is_found_out_everywhere() -> None:
    world = settled(12)
    world.world.run(10)
    world.crash(5)
    took = world.world.run_until(
        lambda: all_believe(world, 5, MemberState.DEAD), limit_s=60, step_s=0.1
    )
    assert 2 < took < 20
    assert {entry[2].fields["node"] for entry in deaths(world)} == {node_id(5)[:8]}


def test_nobody_is_falsely_declared_dead_at_ten_percent_loss_in_two_node_hours() -> None:
    world = settled(10, loss=0.1, checks=False)
    world.world.run(720)
    assert deaths(world) == []


def test_a_stream_probe_is_answered_over_the_stream() -> None:
    swarm = single()
    probe = StreamProbe(1)
    assert swarm.receive_stream(node_id(2), probe, now=0.0) == [
        SendStream(node_id(2), StreamProbeAck(1))
    ]
    assert swarm.receive_stream(node_id(2), StreamProbeAck(1), now=0.0) == []
    assert swarm.receive_stream(node_id(0), probe, now=0.0) == []


def test_a_dead_node_that_restarts_with_a_higher_incarnation_is_back() -> None:
    world = settled(6)
    world.crash(3)
    world.world.run(30)
    assert all_believe(world, 3, MemberState.DEAD)
    world.start(3)
    world.world.run_until(lambda: knows_all(world), limit_s=20, step_s=0.1)
    assert world.swarm(3).incarnation == 2


def test_one_that_lost_its_incarnation_outbids_its_earlier_life() -> None:
    world = settled(6)
    for _ in range(3):
        world.crash(3)
        world.start(3)
        world.world.run_until(lambda: knows_all(world), limit_s=20, step_s=0.1)
    world.crash(3)
    world.world.run(world.now + 30)
    world.start(3, forgets=True)
    world.world.run_until(lambda: knows_all(world), limit_s=20, step_s=0.1)
    assert world.swarm(3).incarnation > 4


def test_a_mass_restart_that_lost_everything_leaves_nobody_dead() -> None:
    world = settled(8)
    for number in range(8):
        world.crash(number)
    for number in range(8):
        world.start(number, forgets=True)
    world.world.run_until(lambda: knows_all(world), limit_s=20, step_s=0.1)
    world.world.run(world.now + 30)
    assert deaths(world) == []


def test_a_stale_alive_does_not_resurrect_and_its_teller_is_corrected() -> None:
    world = settled(5)
    world.crash(4)
    world.world.run(30)
    swarm = world.swarm(0)
    stale = Gossip(News(members=(Headline(node_id(4), 1, 1, 0, MemberState.ALIVE),)))
    effects = swarm.receive(from_peer(1, stale), now=world.now)
    assert world.state(0, 4) is MemberState.DEAD
    corrections = [item for item in effects if isinstance(item, SendDatagram)]
    assert isinstance(corrections[0].message, Gossip)
    assert corrections[0].message.news.members[0].state is MemberState.DEAD
    record = PlainSigner().node(own_record(4, 1))
    swarm.receive(from_peer(1, Bodies(records=(record,))), now=world.now)
    assert world.state(0, 4) is MemberState.DEAD


def test_one_paused_for_long_is_declared_dead_and_returns_without_accusing_others() -> None:
    world = settled(8)
    world.world.pause(world.hosts[3])
    world.world.run(world.now + 25)
    assert all_believe(world, 3, MemberState.DEAD)
    world.world.resume(world.hosts[3])
    world.world.run_until(lambda: knows_all(world), limit_s=20, step_s=0.1)
    assert {entry[2].fields["node"] for entry in deaths(world)} == {node_id(3)[:8]}


def test_one_that_slept_past_the_collection_of_tombstones_starts_over() -> None:
    config = MembershipConfig(tombstone_s=60.0)
    world = settled(4, membership=config)
    world.world.pause(world.hosts[3])
    world.crash(2)
    world.world.run(world.now + 100)
    assert world.state(0, 2) is None
    world.world.resume(world.hosts[3])
    world.world.run_until(lambda: knows_all(world), limit_s=20, step_s=0.1)
    assert world.state(3, 2) is None
    assert world.state(0, 2) is None


def test_tombstones_stop_being_shared_and_are_forgotten() -> None:
    world = settled(4, membership=MembershipConfig(tombstone_s=40.0))
    world.crash(2)
    world.world.run_until(lambda: all_believe(world, 2, MemberState.DEAD), limit_s=30, step_s=0.1)
    world.world.run(world.now + 22)
    assert world.swarm(0).headline(node_id(2), world.now) is None
    assert world.state(0, 2) is MemberState.DEAD
    world.world.run(world.now + 22)
    assert world.state(0, 2) is None
    assert world.swarm(0).addresses_of(node_id(2)) == ()


def test_a_joiner_learns_who_is_dead_and_forgets_when_the_others_do() -> None:
    world = SwarmWorld(
        5, 1, Options(checks=True, config=SwarmConfig(MembershipConfig(tombstone_s=60.0)))
    )
    for number in range(4):
        world.start(number)
    world.world.run(5)
    world.crash(2)
    world.world.run(30)
    world.start(4)
    world.world.run(35)
    assert world.state(4, 2) is MemberState.DEAD
    assert world.hosts[4].notices["member_died"] == 0
    world.world.run(80)
    assert world.state(0, 2) is None
    assert world.state(4, 2) is None


def test_a_healed_partition_leaves_all_alive_with_equal_records_and_no_further_death() -> None:
    world = settled(10)
    world.world.network.part(lambda a, b: (a < 5) != (b < 5))
    world.world.run(60)
    died = len(deaths(world))
    assert died == 50
    world.act(0, lambda swarm: swarm.update_own(now=world.now, memory_bytes=1))
    world.act(9, lambda swarm: swarm.update_own(now=world.now, memory_bytes=2))
    world.world.network.part(None)
    world.world.run_until(lambda: knows_all(world), limit_s=30, step_s=0.1)
    world.world.run(world.now + 20)
    assert len(deaths(world)) == died
    assert knows_all(world)
    views = [world.swarm(i).view() for i in range(10)]
    assert all(view.members == views[0].members for view in views)


# -- refutation


@pytest.mark.parametrize("state", [MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT])
def test_an_accused_node_refutes_and_shows_its_record(state: MemberState) -> None:
    swarm = single(incarnation=4)
    accusation = Gossip(News(members=(Headline(node_id(0), 4, 1, 0, state),)))
    effects = swarm.receive(from_peer(1, accusation), now=1.0)
    assert swarm.incarnation == 5
    assert swarm.awareness == 1
    shown = [e.message for e in effects if isinstance(e, SendDatagram)]
    assert any(isinstance(m, Bodies) and m.records[0].value.incarnation == 5 for m in shown)
    swarm.receive(from_peer(1, accusation), now=1.0)
    assert swarm.incarnation == 5


def test_nobody_but_its_owner_can_push_an_incarnation_up() -> None:
    swarm = single(incarnation=4)
    forged = Gossip(News(members=(Headline(node_id(0), 2**60, 1, 0, MemberState.DEAD),)))
    effects = swarm.receive(from_peer(1, forged), now=1.0)
    assert swarm.incarnation == 4
    assert any(
        isinstance(e, SendDatagram)
        and isinstance(e.message, Pull)
        and node_id(0) in e.message.records
        for e in effects
    )


def test_an_exhausted_incarnation_is_reported() -> None:
    swarm = single(incarnation=INCARNATION_MAX)
    accusation = Headline(node_id(0), INCARNATION_MAX, 1, 0, MemberState.DEAD)
    effects = swarm.receive(from_peer(1, Gossip(News(members=(accusation,)))), now=1.0)
    assert any(isinstance(e, Notify) and e.event == "incarnation_exhausted" for e in effects)


def test_a_refuting_node_publishes_its_load_anew() -> None:
    swarm = single()
    swarm.update_load(Load(3), now=0.0)
    accusation = Headline(node_id(0), 1, 1, 0, MemberState.SUSPECT)
    swarm.receive(from_peer(1, Gossip(News(members=(accusation,)))), now=1.0)
    assert swarm.own_load is not None
    assert swarm.own_load.incarnation == 2
    swarm.check()


def test_a_forged_death_alone_kills_nobody() -> None:
    swarm = single()
    introduced(swarm, 1)
    introduced(swarm, 2)
    forged = Gossip(News(members=(Headline(node_id(2), 1, 1, 0, MemberState.DEAD),)))
    for _ in range(5):
        swarm.receive(from_peer(1, forged), now=0.1)
    assert [
        member.state for member in swarm.view().members if member.record.node == node_id(2)
    ] == [MemberState.SUSPECT]


def test_a_farewell_of_one_who_is_not_leaving_is_not_believed() -> None:
    swarm = single()
    introduced(swarm, 1)
    introduced(swarm, 2)
    forged = Gossip(News(members=(Headline(node_id(2), 1, 1, 0, MemberState.LEFT),)))
    swarm.receive(from_peer(1, forged), now=0.1)
    states = {member.record.node: member.state for member in swarm.view().members}
    assert states[node_id(2)] is MemberState.SUSPECT


def test_equivocation_is_flagged() -> None:
    swarm = single()
    introduced(swarm, 1)
    other = PlainSigner().node(replace(own_record(1, 1), memory_bytes=1))
    effects = swarm.receive(from_peer(2, Bodies(records=(other,))), now=0.0)
    assert any(isinstance(e, Notify) and e.event == "equivocation_seen" for e in effects)
    assert swarm.equivocators == (node_id(1),)


# -- leaving


def test_a_farewell_is_known_at_once_and_final() -> None:
    world = settled(10)
    world.act(4, lambda swarm: swarm.update_own(now=world.now, leaving=True))
    world.world.run(world.now + 1)
    assert all(
        node_id(4) not in [m.record.node for m in world.swarm(i).view().usable()] for i in range(10)
    )
    world.act(4, lambda swarm: swarm.leave(now=world.now))
    took = world.world.run_until(
        lambda: all_believe(world, 4, MemberState.LEFT), limit_s=5, step_s=0.01
    )
    assert took < 0.1
    swarm = world.swarm(4)
    assert not swarm.has_left
    assert swarm.leave(now=world.now) == []
    world.world.run(world.now + 2)
    assert swarm.has_left
    assert swarm.receive(from_peer(1, Ping(1, None)), now=world.now) == []
    world.world.crash(world.hosts[4])
    world.world.run(world.now + 30)
    assert all_believe(world, 4, MemberState.LEFT)
    assert deaths(world) == []


@pytest.mark.parametrize("loss", [0.3])
def test_a_farewell_gets_through_heavy_loss(loss: float) -> None:
    world = settled(10, loss=loss)
    world.act(4, lambda swarm: swarm.leave(now=world.now))
    world.world.run_until(
        lambda: world.hosts[4].machine is not None and world.swarm(4).has_left,
        limit_s=5,
        step_s=0.1,
    )
    world.world.crash(world.hosts[4])
    world.world.run_until(lambda: all_believe(world, 4, MemberState.LEFT), limit_s=20, step_s=0.1)


# -- saying something


def test_an_update_that_changes_nothing_is_no_update() -> None:
    swarm = single()
    revision = swarm.revision
    swarm.update_own(now=0.0, memory_bytes=swarm.own.memory_bytes)
    assert (swarm.own.version, swarm.revision) == (1, revision)
    swarm.update_own(now=0.0, holdings=(), models=(ModelId("m"),), speed_bytes_s=7)
    assert (swarm.own.version, swarm.own.models) == (2, ("m",))


def test_loads_are_published_no_faster_than_allowed_and_the_last_one_counts() -> None:
    swarm = single()
    swarm.update_load(Load(1), now=0.0)
    swarm.update_load(Load(2), now=0.1)
    swarm.update_load(Load(3), now=0.2)
    assert swarm.own_load is not None
    assert swarm.own_load.queue_steps == 1
    assert swarm.deadline() == 1.0
    swarm.fire(now=1.0)
    assert swarm.own_load.queue_steps == 3
    swarm.update_load(Load(4), now=1.1)
    swarm.update_load(Load(3), now=1.2)
    assert swarm.deadline() is None
    assert swarm.fire(now=5.0) == []


def test_models_are_added_changed_and_removed() -> None:
    swarm = single()
    swarm.add_model(spec(), wall_ms=10, now=0.0)
    revision = swarm.revision
    swarm.add_model(spec(), wall_ms=11, now=0.0)
    assert swarm.revision == revision
    swarm.add_model(spec(width=16), wall_ms=5, now=0.0)
    assert swarm.view().models == (spec(width=16),)
    swarm.remove_model(ModelId("m"), wall_ms=5, now=0.0)
    assert swarm.view().models == ()
    with pytest.raises(ModelNotFoundError):
        swarm.remove_model(ModelId("m"), wall_ms=5, now=0.0)
    for number in range(8):
        swarm.add_model(spec(f"m{number}"), wall_ms=5, now=0.0)
    with pytest.raises(ClientError, match="remove one"):
        swarm.add_model(spec("further"), wall_ms=5, now=0.0)


def test_a_fact_from_the_future_is_refused_where_the_time_is_known() -> None:
    fact = ModelFact(ModelId("m"), HybridTime(WALL_MS + 100_000, 0, node_id(1)), spec())
    body = Bodies(facts=(PlainSigner().fact(fact),))
    swarm = single()
    effects = swarm.receive(from_peer(1, body), now=0.0, wall_ms=WALL_MS)
    assert any(isinstance(e, Notify) and e.event == "record_refused" for e in effects)
    assert swarm.view().models == ()
    swarm.receive(from_peer(1, body), now=0.0)
    assert swarm.view().models == (spec(),)


class RenewableSigner(PlainSigner):
    """Its signatures carry a certificate that can be told from others."""

    certificate = b"old"

    def node(self, record: NodeRecord) -> Signed[NodeRecord]:
        return replace(super().node(record), certificate=self.certificate)

    def load(self, record: LoadRecord) -> Signed[LoadRecord]:
        return replace(super().load(record), certificate=self.certificate)

    def fact(self, fact: ModelFact) -> Signed[ModelFact]:
        return replace(super().fact(fact), certificate=self.certificate)


def renewable() -> tuple[Swarm, RenewableSigner]:
    signer = RenewableSigner()
    world = SwarmWorld(1, 0)
    own = own_record(0, 1)
    swarm = Swarm(own, config=SwarmConfig(), sign=signer, random=world.world.random("x"), now=0.0)
    return swarm, signer


def test_own_records_are_published_anew_with_a_renewed_certificate() -> None:
    swarm, signer = renewable()
    swarm.update_load(Load(3), now=0.0)
    before, load_before = swarm.own, swarm.own_load
    assert load_before is not None
    signer.certificate = b"new"
    swarm.sign_anew(own=True, facts=(), now=5.0)
    assert swarm.own == replace(before, version=before.version + 1)
    assert swarm.own_load == replace(load_before, version=load_before.version + 1)
    for kind in ("node", "load"):
        body = swarm.body((kind, node_id(0)))
        assert body is not None
        assert body.certificate == b"new"
    swarm.check()


def test_records_signed_anew_reach_everybody() -> None:
    world = settled(5)
    world.act(1, lambda swarm: swarm.add_model(spec(), wall_ms=WALL_MS, now=world.now))
    world.world.run(world.now + 10)
    version = world.swarm(0).own.version
    world.act(0, lambda swarm: swarm.sign_anew(own=True, facts=(ModelId("m"),), now=world.now))

    def arrived() -> bool:
        return knows_all(world) and all(
            world.swarm(i).facts[0].value.stamp.writer == node_id(0) for i in range(5)
        )

    assert not arrived()
    world.world.run_until(arrived, limit_s=20, step_s=0.1)
    record = world.swarm(4).record_of(node_id(0))
    assert record is not None
    assert record.version == version + 1
    assert all(world.swarm(i).view().models == (spec(),) for i in range(5))


def test_a_fact_of_another_is_stated_anew_and_stays_what_it_was() -> None:
    swarm, signer = renewable()
    stamp = HybridTime(WALL_MS, 3, node_id(1))
    fact = ModelFact(ModelId("m"), stamp, spec())
    swarm.receive(from_peer(1, Bodies(facts=(PlainSigner().fact(fact),))), now=0.0)
    signer.certificate = b"new"
    effects = swarm.sign_anew(own=False, facts=(ModelId("m"), ModelId("unknown")), now=1.0)
    assert effects == []
    (signed,) = swarm.facts
    assert signed.certificate == b"new"
    assert signed.value == replace(fact, stamp=HybridTime(WALL_MS, 4, node_id(0)))
    assert swarm.own.version == own_record(0, 1).version


def test_a_removal_that_was_not_seen_yet_outbids_a_fact_stated_anew() -> None:
    swarm, _ = renewable()
    swarm.add_model(spec(), wall_ms=WALL_MS, now=0.0)
    swarm.sign_anew(own=False, facts=(ModelId("m"),), now=1_000.0)
    removal = ModelFact(ModelId("m"), HybridTime(WALL_MS + 1, 0, node_id(1)), None)
    swarm.receive(from_peer(1, Bodies(facts=(PlainSigner().fact(removal),))), now=1_000.0)
    assert swarm.view().models == ()


def test_a_fact_at_the_end_of_its_counter_is_left_alone() -> None:
    swarm, _ = renewable()
    fact = ModelFact(ModelId("m"), HybridTime(WALL_MS, COUNTER_MAX, node_id(1)), spec())
    swarm.receive(from_peer(1, Bodies(facts=(PlainSigner().fact(fact),))), now=0.0)
    swarm.sign_anew(own=False, facts=(ModelId("m"),), now=1.0)
    assert swarm.facts[0].value == fact


def test_one_that_says_farewell_signs_nothing_anew() -> None:
    swarm, _ = renewable()
    swarm.add_model(spec(), wall_ms=WALL_MS, now=0.0)
    swarm.leave(now=1.0)
    before = (swarm.own, swarm.facts)
    assert swarm.sign_anew(own=True, facts=(ModelId("m"),), now=1.1) == []
    assert (swarm.own, swarm.facts) == before


def test_full_facts_forget_the_oldest_removal_and_refuse_when_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "FACTS_MAX", 1)
    swarm = single()
    swarm.add_model(spec("a"), wall_ms=1, now=0.0)
    effects = swarm.add_model(spec("b"), wall_ms=2, now=0.0)
    assert [e.event for e in effects if isinstance(e, Notify)] == ["record_refused"]
    swarm.remove_model(ModelId("a"), wall_ms=3, now=0.0)
    swarm.add_model(spec("b"), wall_ms=4, now=0.0)
    assert swarm.view().models == (spec("b"),)
    swarm.check()


def test_the_own_record_as_it_stands_or_stood_moves_nothing() -> None:
    swarm = single(incarnation=3)
    for incarnation in (2, 3):
        own = PlainSigner().node(own_record(0, incarnation))
        swarm.receive(from_peer(1, Bodies(records=(own,))), now=0.0)
    assert swarm.incarnation == 3


def test_a_peer_learnt_and_forgotten_between_two_views_leaves_no_trace() -> None:
    swarm = Swarm(
        own_record(0, 1),
        config=SwarmConfig(MembershipConfig(tombstone_s=5.0)),
        sign=PlainSigner(),
        random=SwarmWorld(1, 0).world.random("x"),
        now=0.0,
    )
    swarm.view()
    record = PlainSigner().node(own_record(1, 1))
    dead = Headline(node_id(1), 1, 1, 0, MemberState.DEAD, None, 9)
    swarm.receive(from_peer(2, Bodies(records=(record,), news=News((dead,)))), now=1.0)
    swarm.fire(now=1.0)
    assert [member.record.node for member in swarm.view().members] == [node_id(0)]
    swarm.check()


# -- discovery and addresses


def test_an_unknown_sender_is_asked_who_it_is() -> None:
    swarm = single()
    effects = swarm.receive(from_peer(1, Ping(7, node_id(0))), now=0.0)
    sent = [e.message for e in effects if isinstance(e, SendDatagram)]
    assert any(isinstance(m, Pull) and m.records == (node_id(1),) for m in sent)


def test_own_addresses_and_known_peers_are_not_pinged() -> None:
    swarm = single()
    introduced(swarm, 1)
    assert swarm.discovered(address_of(0), None, now=0.0) == []
    assert swarm.discovered(address_of(5), node_id(0), now=0.0) == []
    assert swarm.discovered(address_of(5), node_id(1), now=0.0) == []
    assert swarm.addresses_of(node_id(0)) == (address_of(0),)
    assert len(swarm.discovered(address_of(6), None, now=0.0)) == 1


def test_the_address_that_last_worked_comes_first() -> None:
    swarm = single()
    introduced(swarm, 1)
    moved = DatagramReceived(node_id(1), address_of(42), Ping(1, None))
    swarm.receive(moved, now=0.0)
    assert swarm.addresses_of(node_id(1)) == (address_of(42), address_of(1))


def test_a_node_that_moved_stays_alive() -> None:
    world = settled(5)
    world.world.run(10)
    world.world.move(world.hosts[3], address_of(77))
    world.act(3, lambda s: s.update_own(now=world.now, addresses=(address_of(77),)))
    world.world.run(60)
    assert deaths(world) == []
    assert world.swarm(0).addresses_of(node_id(3))[0] == address_of(77)


def test_tables_stay_bounded_under_a_flood() -> None:
    swarm = Swarm(
        own_record(0, 1),
        config=SwarmConfig(members_max=50),
        sign=PlainSigner(),
        random=SwarmWorld(1, 0).world.random("x"),
        now=0.0,
    )
    for number in range(1, 400):
        swarm.discovered(address_of(number + 1_000), None, now=0.0)
        introduced(swarm, number)
    swarm.check()
    assert len(swarm.view().members) == 50
    assert len(swarm._discovery) <= SEEDS_MAX


# -- replay


def trace(seed: int) -> str:
    link = Link(loss=0.1, jitter_s=0.01, duplication=0.05)
    world = SwarmWorld(8, seed, Options(link=link, traces=True))
    world.start_all(over_s=1.0)
    world.act(1, lambda swarm: swarm.add_model(spec(), wall_ms=WALL_MS, now=world.now))
    world.world.run(10)
    world.crash(2)
    world.world.run(30)
    return world.world.trace


def test_a_seed_replays_exactly_under_any_hash_seed() -> None:
    code = "from tests.core.test_swarm import trace; print(trace(5))"
    here = trace(5)
    assert trace(6) != here
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here


def test_a_record_too_long_for_a_datagram_leaves_out_what_is_missed_least() -> None:
    swarm = single()
    models = tuple(ModelId("a-rather-long-name-of-a-model-" * 2 + str(n)) for n in range(8))
    ready = tuple(Holding(m, LayerRange(0, 4), HoldingState.READY) for m in models[:2])
    loading = tuple(Holding(m, LayerRange(4, 8), HoldingState.LOADING) for m in models[:6])
    swarm.update_own(now=1.0, holdings=ready + loading, models=models)
    said = swarm.own
    assert said.holdings == ready
    assert set(models[:2]) <= set(said.models) < set(models)
    assert len(PlainSigner().node(said).payload) <= RECORD_BYTES_MAX
    swarm.check()
    version = said.version
    swarm.update_own(now=2.0, holdings=ready + loading, models=models)
    assert swarm.own.version == version, "the same wish is no news"
    swarm.update_own(now=3.0, holdings=ready, models=models[:2])
    assert swarm.own.models == models[:2]


def test_a_record_is_shortened_to_nothing_rather_than_sent_too_long() -> None:
    swarm = single()
    addresses = tuple(address_of(n) for n in range(6))
    models = tuple(ModelId("m" * 120 + str(n)) for n in range(6))
    held = tuple(Holding(m, LayerRange(0, 4), HoldingState.READY) for m in models)
    swarm.update_own(now=1.0, addresses=addresses, holdings=held, models=models)
    assert len(swarm.own.addresses) == 2
    assert len(PlainSigner().node(swarm.own).payload) <= RECORD_BYTES_MAX
    swarm.check()
