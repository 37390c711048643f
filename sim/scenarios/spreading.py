"""How what is new gets around, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from p2pllm.core.swarm import Load
from p2pllm.domain.ids import NodeId
from sim.scenario import Run, Scenario, have_met, quantile, rounded
from sim.swarms import SwarmWorld

ROUND_S = 0.2
"""A round of gossip."""

PART = 0.99
"""The share of nodes that counts as almost everywhere."""


@dataclass(slots=True)
class Traffic:
    """What was sent up to some moment."""

    at_s: float
    datagrams: int
    size_bytes: int

    @classmethod
    def of(cls, world: SwarmWorld) -> Traffic:
        """Now."""
        sent_bytes = sum(host.sent_bytes + host.stream_bytes for host in world.hosts)
        return cls(world.now, sum(host.sent for host in world.hosts), sent_bytes)

    def since(self, before: Traffic, nodes: int) -> dict[str, float]:
        """Per node and second, as figures."""
        node_s = max(self.at_s - before.at_s, 1e-9) * nodes
        return {
            "sent_kb_s_per_node": round((self.size_bytes - before.size_bytes) / node_s / 1_000, 3),
            "datagrams_s_per_node": round((self.datagrams - before.datagrams) / node_s, 2),
        }


def give_loads(run: Run, world: SwarmWorld) -> None:
    """Let every machine have another load every second, as machines at work have."""
    chance = world.world.random("loads")

    def change(number: int) -> None:
        load = Load(queue_steps=chance.randrange(100), kv_free_bytes=chance.randrange(2**33))
        if world.hosts[number].machine is not None and not world.hosts[number].is_paused:
            world.act(number, lambda swarm: swarm.update_load(load, now=world.now))
        world.world.at(world.now + 1.0, lambda: change(number))

    # Spread over the pause between two load records, as they are after a while.
    pause_s = max(1.0, run.plan.nodes / 4)
    for number in range(run.plan.nodes):
        world.world.at(world.now + pause_s * chance.random(), lambda number=number: change(number))


def _convergence(run: Run) -> None:
    world = run.swarms()
    run.figures["join_s"] = rounded(run.gather(world))
    chance = world.world.random("updates")
    before = Traffic.of(world)
    most: list[float] = []
    last: list[float] = []
    for index in range(int(run.number("updates"))):
        number = chance.randrange(run.plan.nodes)
        began_s = world.now
        world.act(number, lambda s, size=index: s.update_own(now=world.now, memory_bytes=size))
        node, stamp = world.hosts[number].node, world.swarm(number).own.stamp

        def share(node: NodeId = node, stamp: tuple[int, int] = stamp) -> float:
            records = [world.swarm(i).record_of(node) for i in range(run.plan.nodes)]
            arrived = sum(record is not None and record.stamp >= stamp for record in records)
            return arrived / run.plan.nodes

        if run.until(lambda: share() >= PART, 60, 0.02) is None:
            run.violate("agreement", f"an update of m{number} was at {share():.1%} after 60 s")
            continue
        most.append(world.now - began_s)
        if run.until(lambda: share() == 1.0, 60, 0.05) is not None:
            last.append(world.now - began_s)
        run.advance(1)
    run.figures["updates"] = len(most)
    run.figures["rounds_to_99_percent_p50"] = _rounds(quantile(most, 0.5))
    run.figures["rounds_to_99_percent_max"] = _rounds(quantile(most, 1.0))
    run.figures["rounds_to_all_p50"] = _rounds(quantile(last, 0.5))
    run.figures["rounds_to_all_max"] = _rounds(quantile(last, 1.0))
    run.figures |= Traffic.of(world).since(before, run.plan.nodes)
    run.settle(60)


def _rounds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds / ROUND_S, 1)


def _steady(run: Run) -> None:
    world = run.swarms()
    run.figures["join_s"] = rounded(run.gather(world))
    if run.number("loads"):
        give_loads(run, world)
    before, deaths = Traffic.of(world), len(false_deaths(world))
    minutes = run.number("minutes")
    run.advance(60 * minutes)
    node_hours = run.plan.nodes * minutes / 60
    found = false_deaths(world)[deaths:]
    distinct = {(subject, incarnation) for _, subject, incarnation in found}
    run.figures["node_hours"] = round(node_hours, 3)
    run.figures["false_deaths_per_node_hour"] = round(len(distinct) / node_hours, 4)
    run.figures["beliefs_in_false_deaths"] = len(found)
    run.figures |= Traffic.of(world).since(before, run.plan.nodes)
    run.settle(60, loads=False)


def false_deaths(world: SwarmWorld) -> list[tuple[float, str, object]]:
    """When which member was taken for dead, and in which incarnation, where nobody ever stopped."""
    return [
        (at_s, str(notice.fields["node"]), notice.fields["incarnation"])
        for at_s, _, notice in world.world.notices
        if notice.event == "member_died"
    ]


def _join_storm(run: Run) -> None:
    world = run.swarms()
    world.start_all(over_s=run.number("over_s"))
    joined_s = run.until(lambda: have_met(world), limit_s=300, step_s=0.1)
    if joined_s is None:
        run.violate("agreement", "not all have met after 300 s")
    run.figures["join_s"] = rounded(world.now)
    run.figures |= Traffic.of(world).since(Traffic(0.0, 0, 0), run.plan.nodes)
    run.figures["false_deaths"] = len(false_deaths(world))
    run.figures["settle_s"] = rounded(run.settle(60))


SCENARIOS = (
    Scenario(
        "convergence",
        "One node changes its record: how many gossip rounds until 99 % and all of them have it.",
        _convergence,
        nodes=100,
        knobs={"updates": 20.0},
        nodes_min=2,
    ),
    Scenario(
        "steady",
        "Nothing happens but work: who is falsely taken for dead, and what the gossip costs.",
        _steady,
        nodes=100,
        knobs={"minutes": 5.0, "loads": 1.0},
        nodes_min=2,
    ),
    Scenario(
        "join-storm",
        "Everybody is switched on at once and knows one address: how long until all know all.",
        _join_storm,
        nodes=100,
        knobs={"over_s": 1.0},
        nodes_min=2,
    ),
)
