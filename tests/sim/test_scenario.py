from __future__ import annotations

import json
from dataclasses import replace

import pytest

from p2pllm.core.swarm import Swarm
from p2pllm.domain.gossip import Signed
from p2pllm.domain.records import MemberState, NodeRecord
from sim.oracles import Watch, disagreement
from sim.scenario import Outcome, Plan, Run, Scenario, UsageError, quantile
from sim.scenarios import SCENARIOS, scenario_of
from sim.scenarios.parting import KINDS, parted
from sim.swarms import Options, SwarmWorld, node_id
from sim.wire import PlainSigner

QUICK: dict[str, dict[str, str]] = {
    "convergence": {"updates": "3"},
    "steady": {"minutes": "0.5"},
    "join-storm": {},
    "detection": {"crashes": "2"},
    "churn": {"minutes": "1", "per_minute": "1", "away_s": "10"},
    "mass-restart": {},
    "flapping": {"minutes": "1"},
    "laptop-sleep": {"sleep_s": "30"},
    "partition": {"lasts_s": "20"},
    "generation": {"requests": "6", "lasts_s": "10", "crashes": "1"},
}
"""Every scenario, so short that it still does what it is about."""


def silent(text: str) -> None:
    pass


def play(name: str, nodes: int = 6, seed: int = 1, loss: float = 0.0, **values: str) -> Outcome:
    plan = Plan(name, nodes, seed, loss, {**QUICK.get(name, {}), **values})
    scenario = scenario_of(name)
    return Run(plan, scenario, silent).play(scenario)


def oracles_of(outcome: Outcome) -> list[str]:
    return [violation.oracle for violation in outcome.violations]


# -- scenarios


def test_every_scenario_is_played_here() -> None:
    assert QUICK.keys() == SCENARIOS.keys()


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("name", QUICK)
def test_a_scenario_holds_its_oracles_and_measures_something(name: str, loss: float) -> None:
    outcome = play(name, loss=loss)
    assert outcome.violations == ()
    assert outcome.figures
    assert outcome.events > 100
    assert len(outcome.trace) == 32
    assert json.loads(json.dumps(outcome.as_dict()))["replay"] == outcome.plan.command


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_partition_heals(kind: str) -> None:
    outcome = play("partition", nodes=8, kind=kind, lasts_s="40")
    assert outcome.violations == ()
    assert isinstance(outcome.figures["heal_s"], float)


@pytest.mark.parametrize(
    ("kind", "cut"),
    [
        ("halves", {(0, 2), (2, 0), (0, 3), (3, 0), (1, 2), (2, 1), (1, 3), (3, 1)}),
        ("bridge", {(1, 2), (2, 1), (1, 3), (3, 1)}),
        ("ring", {(0, 2), (2, 0), (1, 3), (3, 1)}),
        ("one-way", {(0, 2), (0, 3), (1, 2), (1, 3)}),
        ("half-attached", {(0, 2), (2, 0), (0, 3), (3, 0)}),
    ],
)
def test_a_kind_of_partition_cuts_just_these(kind: str, cut: set[tuple[int, int]]) -> None:
    is_cut = parted(kind, 4)
    assert {(a, b) for a in range(4) for b in range(4) if a != b and is_cut(a, b)} == cut


def test_one_update_takes_more_rounds_at_heavy_loss() -> None:
    clean, lossy = (play("convergence", nodes=12, loss=loss, updates="8") for loss in (0.0, 0.3))
    slowest = [outcome.figures["rounds_to_all_max"] for outcome in (clean, lossy)]
    assert isinstance(slowest[0], float)
    assert isinstance(slowest[1], float)
    assert slowest[0] < slowest[1]


def test_a_crash_is_detected_about_when_swim_says() -> None:
    figures = play("detection", nodes=10, crashes="5").figures
    assert figures["crashes"] == 5
    first = figures["first_detection_s_p50"]
    assert isinstance(first, float)
    assert 4.0 < first < 8.0


def test_generations_go_on_over_the_death_of_a_machine_on_their_path() -> None:
    figures = play("generation", requests="10", lasts_s="10", crashes="2").figures
    assert figures["answered"] == figures["requests"] == 10
    assert figures["crashes"] == 2
    assert isinstance(figures["replayed"], int)
    assert figures["replayed"] >= 1


def test_those_who_start_acquainted_are_as_if_they_had_met() -> None:
    met = play("convergence", nodes=6)
    acquainted = play("convergence", nodes=6, join_max="0")
    assert met.figures["join_s"] is not None
    assert acquainted.figures["join_s"] is None
    assert acquainted.violations == ()
    world = SwarmWorld(5, 1, Options())
    world.start_acquainted()
    world.world.run(0.4)
    assert world.agree()
    assert [host.sent for host in world.hosts if host.sent > 4] == []


def test_without_the_wire_the_same_happens_but_no_bytes_are_counted() -> None:
    real, passed_on = (play("join-storm", wire=wire) for wire in ("1", "0"))
    assert real.events == passed_on.events
    assert real.figures["join_s"] == passed_on.figures["join_s"]
    assert passed_on.figures["sent_kb_s_per_node"] == 0.0
    assert real.figures["sent_kb_s_per_node"] != 0.0


# -- the plan and its command line


def test_the_same_plan_gives_the_same_trace_and_another_seed_another() -> None:
    first, again, other = (play("churn", seed=seed, loss=0.1) for seed in (3, 3, 4))
    assert first.trace == again.trace != other.trace
    assert first.figures == again.figures
    assert first.events == again.events


def test_the_replay_command_names_all_that_decides_the_run() -> None:
    plan = Plan("partition", 8, 5, 0.1, {"lasts_s": "9", "kind": "ring"})
    assert plan.command == (
        "python -m sim run partition --nodes 8 --seed 5 --loss 0.1 --set kind=ring --set lasts_s=9"
    )
    assert "--loss" not in replace(plan, loss=0.0).command


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan("steady", 5, 1, 0.0, {"speed": "1"}), "steady has no speed; it has "),
        (Plan("steady", 5, 1, 0.0, {"minutes": "soon"}), "minutes is a number"),
        (Plan("steady", 5, 1, 0.0, {"minutes": "inf"}), "minutes is a number"),
        (Plan("steady", 1, 1), "steady needs at least 2 nodes"),
        (Plan("steady", 5, 1, 1.0), "--loss is a share"),
        (Plan("partition", 5, 1, 0.0, {"kind": "thirds"}), "kind is one of halves, bridge"),
        (Plan("sleepwalk", 5, 1), "no scenario is called sleepwalk; there are convergence, "),
    ],
)
def test_what_does_not_exist_is_said_with_what_does(plan: Plan, says: str) -> None:
    def start() -> None:
        scenario = scenario_of(plan.scenario)
        Run(plan, scenario, silent).play(scenario)

    with pytest.raises(UsageError) as caught:
        start()
    assert str(caught.value).startswith(says)


def test_quantiles_are_values_that_occurred() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert quantile([3.0, 1.0, 2.0], 0.0) == 1.0


# -- the oracles can fail


def test_nodes_that_do_not_refute_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Swarm, "_read_own", lambda self, headline, source, now: [])
    outcome = play("partition", nodes=6, bound_s="60")
    assert oracles_of(outcome) == ["liveness"]


def test_an_incarnation_that_falls_is_caught() -> None:
    world = SwarmWorld(3, 1, Options())
    world.start_acquainted()
    watch = Watch(world.world)
    watch.look()
    subject, observer = world.swarm(1), world.swarm(0)
    store, membership = observer._store, observer._membership
    peer = membership.peer(node_id(1))
    assert peer is not None
    peer.incarnation = 0
    store._nodes[node_id(1)] = PlainSigner().node(replace(subject.own, incarnation=0))
    observer._touch(node_id(1))
    watch.look()
    assert [violation.oracle for violation in watch.violations] == ["incarnation"]


def test_a_resurrection_is_caught() -> None:
    world = SwarmWorld(3, 1, Options())
    world.start_acquainted()
    world.crash(1)
    world.world.run(20)
    watch = Watch(world.world)
    watch.look()
    observer = world.swarm(0)
    membership = observer._membership
    peer = membership.peer(node_id(1))
    assert peer is not None
    assert peer.state is MemberState.DEAD
    membership._clear(peer)
    membership._enter(peer, world.now)
    observer._settle(world.now)
    watch.look()
    assert [violation.oracle for violation in watch.violations] == ["resurrection"]


def test_a_machine_that_breaks_its_own_rules_is_caught() -> None:
    world = SwarmWorld(3, 1, Options())
    world.start_acquainted()
    world.swarm(0)._membership._awareness = 99
    watch = Watch(world.world)
    watch.look()
    (violation,) = watch.violations
    assert violation.oracle == "invariants"
    assert violation.detail.startswith("m0: AssertionError at membership.py:")


def test_a_heap_that_grows_without_bound_is_caught() -> None:
    world = SwarmWorld(1, 1, Options())
    watch = Watch(world.world)
    for index in range(2_000):
        world.world.at(index, lambda: None)
    watch.look()
    assert [violation.oracle for violation in watch.violations] == ["bounded"]


def test_agreement_tells_what_differs() -> None:
    world = SwarmWorld(3, 1, Options())
    world.start_acquainted()
    assert disagreement(world.world) is None
    world.act(1, lambda swarm: swarm.update_own(now=0.0, memory_bytes=5))
    found = disagreement(world.world, exactly=False)
    assert found == ("agreement", "m0 about m1: record (1, 1), not (1, 2)")
    world.world.run(5)
    assert disagreement(world.world) is None
    world.crash(1)
    assert disagreement(world.world) == ("liveness", "m0 takes m1 for live")
    world.world.run(30)
    assert disagreement(world.world) is None


def test_an_exception_anywhere_is_a_violation_with_its_place() -> None:
    def fall(run: Run) -> None:
        run.swarms()
        raise KeyError("nobody")

    scenario = Scenario("fall", "It falls.", fall, nodes=3)
    outcome = Run(Plan("fall", 3, 1), scenario, silent).play(scenario)
    (violation,) = outcome.violations
    assert violation.oracle == "no exception"
    assert violation.detail.startswith("KeyError at test_scenario.py:")


def test_a_signature_that_no_encoding_fits_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(self: PlainSigner, record: NodeRecord) -> Signed[NodeRecord]:
        return Signed(record, bytes(700), bytes(64), bytes(512))

    monkeypatch.setattr(PlainSigner, "node", too_long)
    assert oracles_of(play("join-storm")) == ["no exception"]
