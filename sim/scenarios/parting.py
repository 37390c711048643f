"""Networks that fall apart and grow together again."""

from __future__ import annotations

from sim.network import Parted
from sim.scenario import Run, Scenario, rounded
from sim.scenarios.spreading import Traffic, false_deaths

KINDS = ("halves", "bridge", "ring", "one-way", "half-attached")


def parted(kind: str, nodes: int) -> Parted:
    """Which pairs a partition of some kind cuts.

    Args:
        kind: *halves* cannot reach each other; with a *bridge*, machine 0 still reaches both; in a
            *ring* everybody reaches its two neighbours only; *one-way*, nothing gets from the first
            half to the second; *half-attached*, machine 0 alone cannot reach the second half.
        nodes: how many machines.
    """
    half = nodes // 2
    if kind == "halves":
        return lambda a, b: (a < half) != (b < half)
    if kind == "bridge":
        return lambda a, b: bool(a and b) and (a < half) != (b < half)
    if kind == "ring":
        return lambda a, b: (a - b) % nodes not in (0, 1, nodes - 1)
    if kind == "one-way":
        return lambda a, b: a < half <= b
    return lambda a, b: (a == 0 and b >= half) or (b == 0 and a >= half)


def _partition(run: Run) -> None:
    kind = run.text("kind", *KINDS)
    world = run.swarms()
    run.gather(world)
    before, deaths = Traffic.of(world), len(false_deaths(world))
    world.world.network.part(parted(kind, run.plan.nodes))
    peak = 0.0
    ends_s = world.now + run.number("lasts_s")
    while world.now < ends_s:
        sent = [host.sent_bytes for host in world.hosts]
        began_s = world.now
        run.advance(min(5.0, ends_s - world.now))
        most = max(host.sent_bytes - was for host, was in zip(world.hosts, sent, strict=True))
        peak = max(peak, most / (world.now - began_s) / 1_000)
    # What is said meanwhile on either side has to reach the other one afterwards.
    for number in (0, run.plan.nodes - 1):
        world.act(number, lambda swarm: swarm.update_own(now=world.now, memory_bytes=1))
    run.figures |= Traffic.of(world).since(before, run.plan.nodes)
    run.figures["peak_kb_s_of_one_node"] = round(peak, 1)
    run.figures["deaths_while_parted"] = len(false_deaths(world)) - deaths
    deaths = len(false_deaths(world))
    run.figures["heal_s"] = rounded(run.settle(run.number("bound_s")))
    run.figures["deaths_after_healing"] = len(false_deaths(world)) - deaths


SCENARIOS = (
    Scenario(
        "partition",
        f"The network falls apart ({', '.join(KINDS)}) and heals: how long until all agree again, "
        "and whether a half-connected machine starts a storm (consul#5928).",
        _partition,
        nodes=30,
        knobs={"kind": "halves", "lasts_s": 60.0, "bound_s": 90.0},
        nodes_min=4,
    ),
)
