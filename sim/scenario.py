"""What a scenario is, and the run of one.

A scenario is a function that builds a world through its `Run`, lets things happen in it, and notes
figures. The run watches the oracles meanwhile, keeps count, and says how to see the same again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from p2pllm.core.node import CoreConfig
from p2pllm.core.swarm import SwarmConfig
from p2pllm.domain.records import MemberState
from sim.network import Link
from sim.nodes import MachineSpec, NodeWorld
from sim.oracles import Violation, Watch, disagreement, place_of
from sim.swarms import Options, SwarmWorld
from sim.world import World

Figure = float | int | str | None | list[float]
Value = float | str

LOOK_S = 1.0
"""Virtual time between two looks at the oracles."""

PROGRESS_S = 2.0
"""Real time between two lines of progress."""

COMMON: Mapping[str, Value] = {
    "latency_ms": 0.5,
    "jitter_ms": 0.5,
    "duplication": 0.0,
    "join_max": 200.0,
    "wire": 1.0,
}
"""Knobs of every scenario: the link, the largest swarm that really meets instead of starting
acquainted (see `SwarmWorld.start_acquainted`), and whether messages pass through the wire: without,
a run takes half the time and counts no bytes."""


class UsageError(ValueError):
    """What was asked for does not exist; the text says what does."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides a run.

    Attributes:
        scenario: which.
        nodes: how many machines.
        seed: of all chance.
        loss: share of packets lost.
        values: knobs set otherwise than by default.
    """

    scenario: str
    nodes: int
    seed: int
    loss: float = 0.0
    values: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def command(self) -> str:
        """The line that runs it again."""
        parts = [f"python -m sim run {self.scenario} --nodes {self.nodes} --seed {self.seed}"]
        if self.loss:
            parts.append(f"--loss {self.loss!r}")
        parts += [f"--set {name}={value}" for name, value in sorted(self.values.items())]
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One entry of the table.

    Attributes:
        name: on the command line.
        shows: what is to be seen, in a sentence.
        play: lets it happen.
        nodes: how many machines by default.
        knobs: what `--set` changes, with defaults; `COMMON` besides.
        nodes_min: fewest machines it means anything with.
    """

    name: str
    shows: str
    play: Callable[[Run], None]
    nodes: int
    knobs: Mapping[str, Value] = field(default_factory=dict[str, Value])
    nodes_min: int = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run. Everything but `wall_s` follows from the plan.

    Attributes:
        plan: what was run.
        figures: what the scenario measured.
        violations: of the oracles.
        trace: hash of all that happened.
        events: how many that were.
        virtual_s: how long it took in there.
        wall_s: and out here.
    """

    plan: Plan
    figures: dict[str, Figure]
    violations: tuple[Violation, ...]
    trace: str
    events: int
    virtual_s: float
    wall_s: float

    def as_dict(self) -> dict[str, Any]:
        """The JSON summary."""
        plan = self.plan
        return {
            "scenario": plan.scenario,
            "nodes": plan.nodes,
            "seed": plan.seed,
            "loss": plan.loss,
            "set": dict(sorted(plan.values.items())),
            "figures": self.figures,
            "violations": [violation.as_dict() for violation in self.violations],
            "trace": self.trace,
            "events": self.events,
            "virtual_s": round(self.virtual_s, 3),
            "wall_s": round(self.wall_s, 3),
            "replay": plan.command,
        }


class Run:
    """A scenario under way.

    Args:
        plan: what to run.
        scenario: the same.
        report: gets a line of progress now and then.

    Attributes:
        plan: as given.
        figures: what was measured so far.

    Raises:
        UsageError: a knob is unknown or its value is not a number, or there are too few nodes.
    """

    def __init__(self, plan: Plan, scenario: Scenario, report: Callable[[str], None]) -> None:
        self.plan = plan
        self.figures: dict[str, Figure] = {}
        self._knobs: dict[str, Value] = {**COMMON, **scenario.knobs}
        for name, text in plan.values.items():
            if name not in self._knobs:
                known = ", ".join(sorted(self._knobs))
                raise UsageError(f"{scenario.name} has no {name}; it has {known}")
            self._knobs[name] = _parsed(name, text, self._knobs[name])
        if plan.nodes < scenario.nodes_min:
            raise UsageError(f"{scenario.name} needs at least {scenario.nodes_min} nodes")
        if not 0 <= plan.loss < 1:
            raise UsageError("--loss is a share between 0 and 1")
        self._report = report
        self._world: World[Any] | None = None
        self._watch: Watch[Any] | None = None
        self._looked_s = 0.0
        self._reported_s = time.perf_counter()

    # -- what was asked for

    def number(self, name: str) -> float:
        """A knob that is a number."""
        value = self._knobs[name]
        assert not isinstance(value, str)
        return value

    def text(self, name: str, *choices: str) -> str:
        """A knob that is one of a few words.

        Raises:
            UsageError: it is none of them.
        """
        value = self._knobs[name]
        if value not in choices:
            raise UsageError(f"{name} is one of {', '.join(choices)}")
        assert isinstance(value, str)
        return value

    @property
    def link(self) -> Link:
        """Between all machines, while the faults last."""
        return Link(
            latency_s=self.number("latency_ms") / 1_000,
            jitter_s=self.number("jitter_ms") / 1_000,
            loss=self.plan.loss,
            duplication=self.number("duplication"),
        )

    # -- worlds

    def swarms(self, config: SwarmConfig | None = None) -> SwarmWorld:
        """A world of bare swarms, none of them on yet."""
        ignores = frozenset(("member_joined", "member_suspected", "member_refuted"))
        options = Options(
            self.link,
            config or SwarmConfig(),
            traces=True,
            wire=self.number("wire") > 0,
            ignores=ignores,
        )
        world = SwarmWorld(self.plan.nodes, self.plan.seed, options)
        self._observe(world.world)
        return world

    def nodes(self, machines: list[MachineSpec], config: CoreConfig | None = None) -> NodeWorld:
        """A world of whole nodes, none of them on yet."""
        world = NodeWorld(
            machines,
            self.plan.seed,
            link=self.link,
            config=config,
            checks=False,
            traces=True,
            wire=self.number("wire") > 0,
        )
        self._observe(world.world)
        return world

    def _observe(self, world: World[Any]) -> None:
        assert self._world is None
        self._world, self._watch = world, Watch(world)

    @property
    def world(self) -> World[Any]:
        """Where it happens."""
        assert self._world is not None
        return self._world

    def violate(self, oracle: str, detail: str) -> None:
        """Note that something is wrong."""
        assert self._watch is not None
        self._watch.add(oracle, detail)

    # -- time

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.world.now + seconds
        while self.world.now < end:
            self._step(min(end, self._looked_s + LOOK_S))

    def until(self, condition: Callable[[], bool], limit_s: float, step_s: float) -> float | None:
        """Let time pass in steps until `condition` holds; how long that took, None if too long."""
        began = self.world.now
        while not condition():
            if self.world.now - began >= limit_s:
                return None
            self._step(self.world.now + step_s)
        return self.world.now - began

    def _step(self, until: float) -> None:
        world = self.world
        world.run(until)
        if world.now >= self._looked_s + LOOK_S:
            self._looked_s = world.now
            assert self._watch is not None
            self._watch.look()
        wall_s = time.perf_counter()
        if wall_s - self._reported_s >= PROGRESS_S:
            self._reported_s = wall_s
            self._report(f"{world.now:.1f} virtual seconds, {world.events:,} events")

    # -- phases that many scenarios share

    def gather(self, world: SwarmWorld) -> float | None:
        """Switch all on and wait until everybody takes everybody for live, and a little longer.

        Returns:
            How long that took; None where they started acquainted.
        """
        joined_s: float | None = None
        if self.plan.nodes > self.number("join_max"):
            self._report(f"introducing {self.plan.nodes} nodes to each other")
            world.start_acquainted()
        else:
            world.start_all(over_s=min(5.0, 0.05 * self.plan.nodes))
            joined_s = self.until(lambda: have_met(world), limit_s=300, step_s=0.1)
            if joined_s is None:
                self.violate("agreement", "not all have met after 300 s")
            else:
                joined_s = world.now
        self.advance(10)
        return joined_s

    def settle(self, limit_s: float, *, loads: bool = True) -> float | None:
        """Make the network whole and wait until all agree; how long that took.

        Where it takes longer than `limit_s`, that is a violation. Without `loads`, those need not
        agree, as where they go on changing.
        """
        world = self.world
        world.network.part(None)
        world.network.link = replace(world.network.link, loss=0.0)
        found: tuple[str, str] | None = None

        def agreed() -> bool:
            nonlocal found
            found = disagreement(world, exactly=False, loads=loads)
            return found is None

        settled_s = self.until(agreed, limit_s, step_s=0.5)
        if settled_s is None and found is not None:
            self.violate(found[0], f"{limit_s:.0f} s after all was well: {found[1]}")
            return None
        # What was agreed on stays so, and whole records are equal, not just their stamps.
        self.advance(5)
        found = disagreement(world, loads=loads)
        if found is not None:
            self.violate(*found)
        return settled_s

    # -- the end

    def play(self, scenario: Scenario) -> Outcome:
        """All of it."""
        began_s = time.perf_counter()
        crash: Violation | None = None
        try:
            scenario.play(self)
            assert self._watch is not None
            self._watch.look()
        except UsageError:
            raise
        except Exception as error:
            now = 0.0 if self._world is None else round(self._world.now, 6)
            crash = Violation("no exception", now, place_of(error))
        watched = () if self._watch is None else tuple(self._watch.violations)
        return Outcome(
            self.plan,
            self.figures,
            watched if crash is None else (*watched, crash),
            "" if self._world is None else self._world.trace,
            0 if self._world is None else self._world.events,
            0.0 if self._world is None else self._world.now,
            time.perf_counter() - began_s,
        )


def have_met(world: SwarmWorld) -> bool:
    """Whether every running machine takes all of them for live, in whatever version."""
    running = world.running()
    return all(
        host.machine is not None and host.machine.swarm.size() >= len(running) for host in running
    )


def believe(world: SwarmWorld, subject: int, state: MemberState) -> float:
    """The share of the other running machines that believe this of `subject`."""
    node = world.hosts[subject].node
    others = [host for host in world.running() if host.number != subject]
    agreeing = 0
    for host in others:
        assert host.machine is not None
        headline = host.machine.swarm.headline(node, world.now)
        agreeing += headline is not None and headline.state is state
    return agreeing / len(others)


def quantile(values: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of them do not exceed; None of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def rounded(value: float | None, digits: int = 3) -> float | None:
    """For figures."""
    return None if value is None else round(value, digits)


def _parsed(name: str, text: str, default: Value) -> Value:
    if isinstance(default, str):
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{name} is a number that is not negative, not {text!r}")
    return value
