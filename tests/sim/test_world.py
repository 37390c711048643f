from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from p2pllm.core.effects import Effect, LeaveFinished, Notify, SendDatagram, SendStream
from p2pllm.core.events import DatagramReceived, Event, PeerUnreachable, StreamReceived, TimerFired
from p2pllm.domain.gossip import Nack
from p2pllm.domain.messages import StreamProbe
from sim.clock import Clock
from sim.network import Link, Network
from sim.swarms import address_of, node_id
from sim.world import Host, World


@dataclass
class Recorder:
    """Notes what it gets; wakes up at `wake`."""

    wake: float | None = None
    every_s: float | None = None
    got: list[tuple[float, Event]] = field(default_factory=list)
    checks: int = 0

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        self.got.append((now, event))
        if isinstance(event, TimerFired):
            self.wake = None if self.every_s is None else now + self.every_s
        return []

    def deadline(self) -> float | None:
        return self.wake

    def check(self) -> None:
        self.checks += 1


def two(**options: object) -> tuple[World[Recorder], list[Host[Recorder]]]:
    world: World[Recorder] = World(1, **options)  # type: ignore[arg-type]
    hosts = [world.add(node_id(i), address_of(i)) for i in range(2)]
    for host in hosts:
        world.start(host, Recorder())
    return world, hosts


def got(host: Host[Recorder]) -> list[tuple[float, Event]]:
    assert host.machine is not None
    return host.machine.got


def say(world: World[Recorder], host: Host[Recorder], *effects: Effect) -> None:
    world.act(host, lambda machine: list(effects))


def test_equal_times_keep_their_order_and_the_past_is_now() -> None:
    clock: Clock[str] = Clock()
    clock.put(1.0, "a")
    clock.put(1.0, "b")
    assert len(clock) == 2
    assert [clock.pop(2.0), clock.pop(2.0), clock.pop(2.0)] == ["a", "b", None]
    assert clock.now == 2.0
    clock.put(0.5, "late")
    assert clock.pop(2.0) == "late"
    assert clock.now == 2.0


def test_datagrams_arrive_after_the_latency_with_sender_and_source() -> None:
    world, hosts = two(link=Link(0.01, 0.0), checks=True)
    say(world, hosts[0], SendDatagram(address_of(1), Nack(7)))
    world.run(1.0)
    assert got(hosts[1]) == [(0.01, DatagramReceived(node_id(0), address_of(0), Nack(7)))]
    assert hosts[0].sent == 1
    assert hosts[1].machine is not None
    assert hosts[1].machine.checks == 1


def test_loss_and_duplication_come_as_often_as_asked() -> None:
    network = Network(random.Random(1), Link(loss=0.3, duplication=0.1))
    counts = [len(network.datagram(0, 1)) for _ in range(10_000)]
    assert counts.count(0) == pytest.approx(3_000, rel=0.1)
    assert counts.count(2) == pytest.approx(700, rel=0.2)


def test_a_link_of_its_own_goes_one_way() -> None:
    network = Network(random.Random(1), Link(0.0, 0.0))
    network.set_link(0, 1, Link(loss=1.0))
    assert network.datagram(0, 1) == []
    assert network.stream(0, 1) is None
    assert network.datagram(1, 0) == [0.0]


def test_loss_on_a_stream_is_delay() -> None:
    network = Network(random.Random(1), Link(0.0, 0.0, loss=0.5))
    delays = [delay for _ in range(200) if (delay := network.stream(0, 1)) is not None]
    assert set(delays[:100]) >= {0.0, 0.2}


def test_streams_keep_their_order_and_reach_oneself() -> None:
    world, hosts = two(link=Link(0.001, 0.5))
    frames = [SendStream(node_id(1), StreamProbe(i)) for i in range(20)]
    say(world, hosts[0], *frames, SendStream(node_id(0), StreamProbe(99)))
    world.run(10.0)
    received = [e.message for _, e in got(hosts[1]) if isinstance(e, StreamReceived)]
    assert received == [StreamProbe(i) for i in range(20)]
    assert got(hosts[0]) == [(0.0, StreamReceived(node_id(0), StreamProbe(99)))]


def test_a_stream_to_nowhere_comes_back_as_unreachable() -> None:
    world, hosts = two()
    world.crash(hosts[1])
    say(world, hosts[0], SendStream(node_id(1), StreamProbe(1)))
    say(world, hosts[0], SendStream(node_id(5), StreamProbe(1)))
    say(world, hosts[0], SendDatagram(address_of(1), Nack(1)))
    world.run(10.0)
    world.start(hosts[1], Recorder())
    world.network.part(lambda a, b: a != b)
    say(world, hosts[0], SendStream(node_id(1), StreamProbe(1)))
    say(world, hosts[0], SendDatagram(address_of(1), Nack(1)))
    world.run(20.0)
    assert [type(e) for _, e in got(hosts[0])] == [PeerUnreachable] * 3
    assert got(hosts[1]) == []
    world.network.part(None)
    say(world, hosts[0], SendDatagram(address_of(1), Nack(1)))
    world.run(21.0)
    assert len(got(hosts[1])) == 1


def test_what_was_on_its_way_to_a_former_life_is_dropped() -> None:
    world, hosts = two(link=Link(1.0, 0.0))
    say(world, hosts[0], SendDatagram(address_of(1), Nack(1)))
    world.crash(hosts[1])
    world.start(hosts[1], Recorder(wake=0.5))
    world.run(3.0)
    assert [type(e) for _, e in got(hosts[1])] == [TimerFired]
    world.crash(hosts[1])
    say(world, hosts[1], Notify("never"))
    assert world.notices == []


def test_a_paused_machine_gets_all_of_it_later() -> None:
    world, hosts = two(link=Link(0.1, 0.0))
    world.crash(hosts[1])
    world.start(hosts[1], Recorder(wake=0.5))
    world.pause(hosts[1])
    say(world, hosts[0], SendDatagram(address_of(1), Nack(1)))
    world.run(5.0)
    assert got(hosts[1]) == []
    world.resume(hosts[1])
    assert [(at, type(e)) for at, e in got(hosts[1])] == [
        (5.0, TimerFired),
        (5.0, DatagramReceived),
    ]
    world.pause(hosts[1])
    world.resume(hosts[1])
    assert len(got(hosts[1])) == 2


def test_one_timer_fires_once_per_deadline_even_where_it_moves() -> None:
    world, hosts = two()
    machine = hosts[0].machine
    assert machine is not None
    machine.wake, machine.every_s = 1.0, 1.0
    say(world, hosts[0])
    machine.wake = 3.0
    say(world, hosts[0])
    machine.wake = 2.0
    say(world, hosts[0])
    world.run(5.5)
    assert [at for at, _ in got(hosts[0])] == [2.0, 3.0, 4.0, 5.0]
    machine.wake = None
    say(world, hosts[0])
    world.run(9.0)
    assert len(got(hosts[0])) == 4


def test_a_moved_host_is_reached_at_its_new_address_only() -> None:
    world, hosts = two()
    world.move(hosts[1], address_of(9))
    say(world, hosts[0], SendDatagram(address_of(1), Nack(1)))
    say(world, hosts[0], SendDatagram(address_of(9), Nack(2)))
    world.run(1.0)
    assert len(got(hosts[1])) == 1


def test_other_effects_go_to_the_performer_and_notices_are_kept() -> None:
    seen: list[Effect] = []
    world, hosts = two(perform=lambda host, effect: seen.append(effect))
    say(world, hosts[0], LeaveFinished(), Notify("x"))
    assert seen == [LeaveFinished()]
    assert hosts[0].notices["x"] == 1
    quiet, quiet_hosts = two()
    say(quiet, quiet_hosts[0], LeaveFinished())


def test_scenarios_act_in_time_and_waiting_has_an_end() -> None:
    world, hosts = two(traces=True, size_of=lambda message: 100)
    world.at(2.0, lambda: say(world, hosts[0], SendDatagram(address_of(1), Nack(1))))
    assert world.run_until(lambda: bool(got(hosts[1])), limit_s=5.0, step_s=0.5) == 2.5
    assert hosts[0].sent_bytes == 100
    assert world.trace != two(traces=True)[0].trace
    with pytest.raises(TimeoutError):
        world.run_until(lambda: False, limit_s=1.0, step_s=0.5)
