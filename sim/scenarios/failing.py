"""Machines that stop, come back, stand still or cannot be reached now and then."""

from __future__ import annotations

from p2pllm.domain.records import MemberState
from sim.scenario import Run, Scenario, believe, quantile, rounded
from sim.scenarios.spreading import PART, Traffic, false_deaths


def _detection(run: Run) -> None:
    world = run.swarms()
    run.gather(world)
    chance = world.world.random("victims")
    first: list[float] = []
    most: list[float] = []
    for _ in range(int(run.number("crashes"))):
        victim = chance.randrange(run.plan.nodes)
        # Somewhere between two probes, as real crashes are.
        run.advance(1 + chance.random())
        seen, began_s = len(world.world.notices), world.now
        world.crash(victim)
        believed_s = run.until(
            lambda victim=victim: believe(world, victim, MemberState.DEAD) >= PART, 120, 0.1
        )
        if believed_s is None:
            run.violate("liveness", f"m{victim} is still believed alive 120 s after its crash")
        else:
            most.append(believed_s)
        name = world.hosts[victim].node[:8]
        told = (
            at_s
            for at_s, _, notice in world.world.notices[seen:]
            if notice.event == "member_died" and notice.fields["node"] == name
        )
        at_s = next(told, None)
        if at_s is not None:
            first.append(at_s - began_s)
        world.start(victim, seeds=(0, 1))
        back_s = run.until(
            lambda victim=victim: believe(world, victim, MemberState.ALIVE) >= PART, 60, 0.5
        )
        if back_s is None:
            run.violate("liveness", f"m{victim} is not back with all 60 s after its restart")
    run.figures["crashes"] = len(first)
    run.figures["first_detection_s_p50"] = rounded(quantile(first, 0.5))
    run.figures["first_detection_s_p90"] = rounded(quantile(first, 0.9))
    run.figures["first_detection_s_max"] = rounded(quantile(first, 1.0))
    run.figures["99_percent_detection_s_p50"] = rounded(quantile(most, 0.5))
    run.figures["first_detections_s"] = [round(value, 2) for value in sorted(first)]
    run.settle(60)


def _churn(run: Run) -> None:
    world = run.swarms()
    run.gather(world)
    chance = world.world.random("churn")
    before = Traffic.of(world)
    ends_s = world.now + 60 * run.number("minutes")
    pause_s = 60 / (run.number("per_minute") * run.plan.nodes)
    crashes: dict[str, float] = {}
    starts = leaves = 0

    def back(number: int) -> None:
        nonlocal starts
        if world.hosts[number].machine is None:
            starts += 1
            world.start(number, seeds=(0, 1))
            # Whoever left at the same time cannot introduce it; a user would name another.
            introduce(number)

    def introduce(number: int) -> None:
        others = [host.number for host in world.running() if host.number != number]
        address = world.hosts[chance.choice(others)].address
        world.act(number, lambda swarm: swarm.discovered(address, None, now=world.now))

    def farewell(number: int) -> None:
        host = world.hosts[number]
        if host.machine is not None and host.machine.swarm.has_left:
            world.crash(number)

    while world.now < ends_s:
        run.advance(min(chance.expovariate(1 / pause_s), ends_s - world.now))
        running = [
            host.number
            for host in world.running()
            if host.machine is not None and not host.machine.swarm.own.leaving
        ]
        if len(running) <= run.plan.nodes // 2:
            continue
        number = chance.choice(running)
        away_s = chance.uniform(1, 2 * run.number("away_s"))
        if chance.random() < run.number("graceful"):
            leaves += 1
            world.act(number, lambda swarm: swarm.update_own(now=world.now, leaving=True))
            world.act(number, lambda swarm: swarm.leave(now=world.now))
            world.world.at(world.now + 2, lambda number=number: farewell(number))
            away_s += 2
        else:
            crashes[world.hosts[number].node[:8]] = world.now
            world.crash(number)
        world.world.at(world.now + away_s, lambda number=number: back(number))
    run.figures |= Traffic.of(world).since(before, run.plan.nodes)
    run.figures |= {"crashes": len(crashes), "leaves": leaves, "starts": starts}
    stopped = {host.node[:8] for host in world.hosts if host.machine is None}
    stopped |= crashes.keys()
    run.figures["false_deaths"] = len({d[1:] for d in false_deaths(world) if d[1] not in stopped})
    run.advance(2 * run.number("away_s") + 5)
    run.figures["settle_s"] = rounded(run.settle(180))


def _mass_restart(run: Run) -> None:
    world = run.swarms()
    run.gather(world)
    # Some have been here for long, and others have not.
    for number in range(0, run.plan.nodes, 3):
        for _ in range(1 + number % 4):
            world.crash(number)
            world.start(number, seeds=(0, 1))
    run.settle(60)
    began_s = world.now
    for number in range(run.plan.nodes):
        world.crash(number)
    run.advance(run.number("off_s"))
    forgets = run.number("forgets")
    over_s = run.number("over_s")
    chance = world.world.random("restart")
    back_s = world.now
    for number in range(run.plan.nodes):
        forgot = chance.random() < forgets
        world.world.at(
            back_s + over_s * chance.random(),
            lambda number=number, forgot=forgot: world.start(number, forgets=forgot),
        )
    run.advance(over_s)
    died = len(false_deaths(world))
    run.figures["settle_s"] = rounded(run.settle(120))
    run.figures["false_deaths"] = len(false_deaths(world)) - died
    run.figures["down_s"] = rounded(back_s - began_s)


def _flapping(run: Run) -> None:
    world = run.swarms()
    run.gather(world)
    flappers = range(max(1, round(run.number("share") * run.plan.nodes)))
    names = {world.hosts[number].node[:8] for number in flappers}
    before, deaths = Traffic.of(world), len(false_deaths(world))
    ends_s = world.now + 60 * run.number("minutes")
    flaps = 0
    while world.now < ends_s:
        world.world.network.part(lambda a, b: a in flappers or b in flappers)
        flaps += 1
        run.advance(run.number("off_s"))
        world.world.network.part(None)
        run.advance(run.number("on_s"))
    found = false_deaths(world)[deaths:]
    run.figures |= Traffic.of(world).since(before, run.plan.nodes)
    run.figures["flaps"] = flaps
    run.figures["deaths_of_the_flapping"] = len({d[1:] for d in found if d[1] in names})
    run.figures["healthy_taken_for_dead_by_healthy"] = sum(
        notice.event == "member_died"
        and number not in flappers
        and notice.fields["node"] not in names
        for _, number, notice in world.world.notices
    )
    highest = max(world.swarm(number).incarnation for number in flappers)
    run.figures["highest_incarnation"] = highest
    run.figures["settle_s"] = rounded(run.settle(60))


def _laptop_sleep(run: Run) -> None:
    world = run.swarms()
    run.gather(world)
    sleepers = range(max(1, round(run.number("share") * run.plan.nodes)))
    names = {world.hosts[number].node[:8] for number in sleepers}
    for number in sleepers:
        world.world.pause(world.hosts[number])
    run.advance(run.number("sleep_s"))
    deaths = len(false_deaths(world))
    for number in sleepers:
        world.world.resume(world.hosts[number])
    run.figures["sleepers"] = len(sleepers)
    run.figures["back_s"] = rounded(run.settle(60))
    run.advance(30)
    after = false_deaths(world)[deaths:]
    run.figures["deaths_after_waking"] = len(after)
    run.figures["of_those_who_were_awake"] = len([d for d in after if d[1] not in names])


SCENARIOS = (
    Scenario(
        "detection",
        "One machine after another crashes: how long until the first other one, and 99 % of them, "
        "take it for dead.",
        _detection,
        nodes=100,
        knobs={"crashes": 15.0},
    ),
    Scenario(
        "churn",
        "Machines crash, leave and come back all the time; then they stop doing so, and all agree.",
        _churn,
        nodes=50,
        knobs={"per_minute": 0.1, "minutes": 3.0, "graceful": 0.3, "away_s": 20.0},
        nodes_min=4,
    ),
    Scenario(
        "mass-restart",
        "A power cut: all stop and start again, and a share of them lost their incarnation "
        "(memberlist#311).",
        _mass_restart,
        nodes=50,
        knobs={"forgets": 0.5, "off_s": 10.0, "over_s": 5.0},
    ),
    Scenario(
        "flapping",
        "A bad cable takes some machines off and on the network; the healthy ones must not suffer.",
        _flapping,
        nodes=50,
        knobs={"share": 0.04, "off_s": 10.0, "on_s": 10.0, "minutes": 5.0},
    ),
    Scenario(
        "laptop-sleep",
        "Some lids are closed for a while: on waking, the sleepers come back and accuse nobody.",
        _laptop_sleep,
        nodes=30,
        knobs={"share": 0.3, "sleep_s": 600.0},
    ),
)
